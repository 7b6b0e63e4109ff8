// x (M, K), weight (K) -> y (M, K). Contract: bitnet_torch/ops/rms_norm.py.
#include "row_memory.hpp"

using namespace bitnet;

BITNET_EXPORT int bitnet_cpu_rms_norm(const void* x, int dtype, const void* weight, int weight_dtype, float eps,
                                      int64_t M, int64_t K, void* y, int threads) {
    if (!valid_norm(dtype, weight_dtype, eps, M, K)) return kInvalidArgument;
    const Kernels& kernel = kernels();
    const FloatState state;
    const DType d = static_cast<DType>(dtype);
    const float* gain;
    if (!float_weight(weight, weight_dtype, K, gain)) return kOutOfMemory;
    return for_each_row(M, K, kNormWork, threads, [&](int64_t m, float* row) {
        void* out = static_cast<char*>(y) + static_cast<size_t>(m * K) * dtype_size(d);
        if (d == kFloat32) return kernel.norm_row(element(x, d, m * K), d, gain, K, eps, d, static_cast<float*>(out));
        kernel.norm_row(element(x, d, m * K), d, gain, K, eps, d, row);
        kernel.narrow_row(row, K, d, out);
    });
}
