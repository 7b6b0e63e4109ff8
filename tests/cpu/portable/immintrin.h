// Stands in for the compiler's header: every intrinsic in portable C, so that instruction sets which this machine does
// not have run all the same. Found first on the include path when test_portable.py compiles the kernels.
#pragma once
#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
// AVX-VNNI's own name for what AVX-512 has, too.
#define _mm256_dpbusd_avx_epi32 simde_mm256_dpbusd_epi32
#if !defined(_MM_FROUND_NO_EXC)
#define _MM_FROUND_NO_EXC SIMDE_MM_FROUND_NO_EXC
#endif
