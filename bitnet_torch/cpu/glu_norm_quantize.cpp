// g, u (M, K), weight (K) or null -> x_q int8 (M, K), x_scale (M): gate, norm and quantiser on one row in cache.
#include "row_memory.hpp"

using namespace bitnet;

BITNET_EXPORT int bitnet_cpu_glu_norm_quantize(const void* g, const void* u, int dtype, int activation,
                                               const void* weight, int weight_dtype, float eps, int64_t M, int64_t K,
                                               int8_t* x_q, float* x_scale, int threads) {
    if (!valid_norm(dtype, weight_dtype, eps, M, K) || !valid_activation(activation)) return kInvalidArgument;
    const Kernels& kernel = kernels();
    const FloatState state;
    const DType d = static_cast<DType>(dtype);
    const float* gain = nullptr;
    if (weight != nullptr && !float_weight(weight, weight_dtype, K, gain)) return kOutOfMemory;
    return for_each_row(M, K, kNormWork * 2, threads, [&](int64_t m, float* row) {
        int32_t sum;
        kernel.glu_row(element(g, d, m * K), element(u, d, m * K), d, K, static_cast<Activation>(activation), row);
        if (gain != nullptr) kernel.norm_row(row, kFloat32, gain, K, eps, d, row);
        kernel.quantize_row(row, kFloat32, K, x_q + m * K, K, x_scale + m, &sum);
    });
}
