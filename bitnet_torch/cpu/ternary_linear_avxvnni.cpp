// Ternary product, AVX-VNNI: one panel in a vector, 16 registers (Intel from Alder Lake on, AMD from Zen 5 on).
#define BITNET_DPBUSD256 _mm256_dpbusd_avx_epi32
#include "ternary_dot256.hpp"

namespace bitnet {
namespace avxvnni {

// 8 sums, 2 packed vectors, 2 of codes, the mask and one of x.
void ternary_panels(const TernaryJob& job, int64_t first, int64_t last) {
    if (job.tokens == 1) return gemv<Wide256, 4>(job, first, last);
    gemm<Wide256, 2, 4>(job, first, last);
}

}  // namespace avxvnni
}  // namespace bitnet
