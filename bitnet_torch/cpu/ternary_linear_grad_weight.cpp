// grad (M, N), x_q int8 (M, K), x_scale (M) -> dW (N, K) = grad^T @ (x_q * x_scale).
#include <cstring>

#include "float_product.hpp"

namespace bitnet {
namespace {

struct Gradient {
    const void* grad;
    DType dtype;
    int64_t M, N;
};

int multiply(const Gradient& g, const int8_t* x_q, const float* x_scale, int64_t K, void* dw, DType dtype, int threads) {
    const Kernels& kernel = kernels();
    const auto fill_a = [&](const Panels& a, int64_t begin, int64_t end) {
        float values[kMostRows];
        for (int64_t row = a.rows; row < a.padded_rows(); ++row) values[row] = 0.0f;
        for (int64_t m = begin; m < end; ++m) {
            const int64_t d0 = m / kBlockDepth * kBlockDepth;
            kernel.widen_row(element(g.grad, g.dtype, m * g.N + a.first), g.dtype, a.rows, values);
            for (int64_t row = 0; row < a.rows; row += kTileRows)
                std::memcpy(a.tile(d0, row) + (m - d0) * kTileRows, values + row, kTileRows * sizeof(float));
        }
    };
    const auto fill_b = [&](int64_t k, int64_t columns, int64_t d0, int64_t count, float* b) {
        const int8_t* from = x_q + d0 * K + k;
        if (columns == kStripK) return kernel.int8_strip(from, K, x_scale + d0, count, b);
        int8_t edge[kBlockDepth * kStripK] = {};
        for (int64_t d = 0; d < count; ++d) std::memcpy(edge + d * kStripK, from + d * K, static_cast<size_t>(columns));
        kernel.int8_strip(edge, kStripK, x_scale + d0, count, b);
    };
    return float_product(g.N, g.M, K, dw, dtype, threads, false, fill_a, fill_b);
}

}  // namespace
}  // namespace bitnet

BITNET_EXPORT int bitnet_cpu_ternary_linear_grad_weight(const void* grad, int grad_dtype, const int8_t* x_q,
                                                        const float* x_scale, void* dw, int dw_dtype, int64_t M,
                                                        int64_t N, int64_t K, int threads) {
    using namespace bitnet;
    if (!valid_matrix(M, N) || !valid_matrix(M, K) || !valid_matrix(N, K) || !valid_dtype(grad_dtype) ||
        !valid_dtype(dw_dtype))
        return kInvalidArgument;
    if (N == 0 || K == 0) return kOk;
    const DType dtype = static_cast<DType>(dw_dtype);
    if (M == 0) {
        std::memset(dw, 0, static_cast<size_t>(N * K) * dtype_size(dtype));
        return kOk;
    }
    const FloatState state;
    return multiply({grad, static_cast<DType>(grad_dtype), M, N}, x_q, x_scale, K, dw, dtype, clamp_threads(threads));
}
