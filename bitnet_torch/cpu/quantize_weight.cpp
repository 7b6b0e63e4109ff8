// W (N, K) -> t int8 (N, K), w_scale float32 (1 or N).
#include "threads.hpp"
#include "weight_scale.hpp"

using namespace bitnet;

// by_row: w_scale has N elements, else one. kBadValue: a weight is not finite.
BITNET_EXPORT int bitnet_cpu_quantize_weight(const void* w, int dtype, int64_t N, int64_t K, int by_row, int8_t* t,
                                             float* w_scale, int threads) {
    if (!valid_dtype(dtype) || !valid_matrix(N, K) || N * K > kMaxWeightCount) return kInvalidArgument;
    const Kernels& kernel = kernels();
    const FloatState state;
    const DType d = static_cast<DType>(dtype);
    threads = useful_threads(clamp_threads(threads), N * K * kWeightWork);
    const int status = by_row != 0 ? row_scales(w, d, N, K, w_scale, threads)
                                   : matrix_scale(w, d, N * K, w_scale, threads);
    if (status != kOk) return status;
    parallel_for(N, even_grain(N, threads, 1), threads, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n)
            kernel.weight_codes(element(w, d, n * K), d, K, w_scale[by_row != 0 ? n : 0] / 2, t + n * K);
    });
    return kOk;
}
