// Ternary product, AVX2: which kernel for how many tokens.
#include "ternary_avx2.hpp"

namespace bitnet {
namespace avx2 {

void ternary_panels(const TernaryJob& job, int64_t first, int64_t last) {
    // From 13 tokens on, unpacking the codes once and reusing them beats unpacking them in registers.
    if (job.tokens == 1)
        ternary_gemv(job, first, last);
    else if (job.tokens <= 12)
        ternary_few_tokens(job, first, last);
    else
        ternary_gemm(job, first, last);
}

}  // namespace avx2
}  // namespace bitnet
