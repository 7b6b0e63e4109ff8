// grad (M, N), exchange codes (ceil(N/4), K), w_scale (1 or N) -> dX (M, K) = (grad * w_scale) @ t.
//
// The sum runs over the bytes of a column, four rows of the weight each: d = 4 * r + j is row r + j * R. Rows past N have
// a gradient of zero, so what their codes say is no matter.
#include <cstring>

#include "float_product.hpp"

namespace bitnet {
namespace {

constexpr int64_t kBlockBytes = kBlockDepth / 4;

struct Gradient {
    const void* grad;
    DType dtype;
    int64_t M, N, R;
    const float* w_scale;
    int64_t w_scale_step;  // 0 is one scale for the matrix
};

// One row of grad * w_scale: d0 .. d0 + 4 * bytes, six floats apart.
void fill_row(const Kernels& kernel, const Gradient& g, int64_t m, int64_t r0, int64_t bytes, float* a) {
    float values[kBlockBytes];
    for (int64_t j = 0; j < 4; ++j) {
        const int64_t n0 = r0 + j * g.R, left = m < g.M ? g.N - n0 : 0;
        const int64_t present = left < 0 ? 0 : left < bytes ? left : bytes;
        if (present > 0) kernel.widen_row(element(g.grad, g.dtype, m * g.N + n0), g.dtype, present, values);
        for (int64_t i = 0; i < bytes; ++i)
            a[(4 * i + j) * kTileRows] = i < present ? values[i] * g.w_scale[(n0 + i) * g.w_scale_step] : 0.0f;
    }
}

int multiply(const Gradient& g, const uint8_t* packed, int64_t K, void* dx, DType dtype, int threads) {
    const Kernels& kernel = kernels();
    const auto fill_a = [&](const Panels& a, int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
            for (int64_t d0 = 0; d0 < a.depth; d0 += kBlockDepth)
                fill_row(kernel, g, row < a.rows ? a.first + row : g.M, d0 / 4, a.block_depth(d0) / 4,
                         a.tile(d0, row / kTileRows * kTileRows) + row % kTileRows);
    };
    const auto fill_b = [&](int64_t k, int64_t columns, int64_t d0, int64_t count, float* b) {
        const uint8_t* from = packed + d0 / 4 * K + k;
        if (columns == kStripK) return kernel.ternary_strip(from, K, count / 4, b);
        uint8_t edge[kBlockBytes * kStripK];
        std::memset(edge, 0x55, sizeof edge);  // the zero weight
        for (int64_t r = 0; r < count / 4; ++r) std::memcpy(edge + r * kStripK, from + r * K, static_cast<size_t>(columns));
        kernel.ternary_strip(edge, kStripK, count / 4, b);
    };
    return float_product(g.M, 4 * g.R, K, dx, dtype, threads, true, fill_a, fill_b);
}

}  // namespace
}  // namespace bitnet

BITNET_EXPORT int bitnet_cpu_ternary_linear_grad_input(const void* grad, int grad_dtype, const uint8_t* packed,
                                                       const float* w_scale, int64_t w_scale_count, void* dx,
                                                       int dx_dtype, int64_t M, int64_t N, int64_t K, int threads) {
    using namespace bitnet;
    if (!valid_matrix(M, N) || !valid_matrix(M, K) || !valid_matrix(N, K) || !valid_dtype(grad_dtype) ||
        !valid_dtype(dx_dtype) || (w_scale_count != 1 && w_scale_count != N))
        return kInvalidArgument;
    if (M == 0 || K == 0) return kOk;
    const DType dtype = static_cast<DType>(dx_dtype);
    if (N == 0) {
        std::memset(dx, 0, static_cast<size_t>(M * K) * dtype_size(dtype));
        return kOk;
    }
    const FloatState state;
    const Gradient g{grad, static_cast<DType>(grad_dtype), M, N, (N + 3) / 4, w_scale, w_scale_count == 1 ? 0 : 1};
    return multiply(g, packed, K, dx, dtype, clamp_threads(threads));
}
