// Metal Shading Language for clang++ 19 in C++14 mode, so that a CPU can run compute kernels. Test-only.
//
// The same text is compiled twice:
//   METAL_HOST_STRICT   device, constant and threadgroup are clang address spaces; types are checked, nothing runs
//   otherwise           they vanish; the native code runs on fibers (runtime.cpp)
#pragma once
#pragma clang system_header
#include "types.h"
#include "runtime.h"
#include "math.h"
#include "simd.h"
#include "matrix.h"
#include "atomic.h"
#include "constructors.h"
#include "entry.h"
