// x (M, K), weight (K) -> x_q int8 (M, K), x_scale (M): each row is quantised while it is in cache.
#include "row_memory.hpp"

using namespace bitnet;

BITNET_EXPORT int bitnet_cpu_rms_norm_quantize(const void* x, int dtype, const void* weight, int weight_dtype,
                                               float eps, int64_t M, int64_t K, int8_t* x_q, float* x_scale,
                                               int threads) {
    if (!valid_norm(dtype, weight_dtype, eps, M, K)) return kInvalidArgument;
    const Kernels& kernel = kernels();
    const FloatState state;
    const DType d = static_cast<DType>(dtype);
    const float* gain;
    if (!float_weight(weight, weight_dtype, K, gain)) return kOutOfMemory;
    return for_each_row(M, K, kNormWork * 3 / 2, threads, [&](int64_t m, float* row) {
        int32_t sum;
        kernel.norm_row(element(x, d, m * K), d, gain, K, eps, d, row);
        kernel.quantize_row(row, kFloat32, K, x_q + m * K, K, x_scale + m, &sum);
    });
}
