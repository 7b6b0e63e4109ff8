// Fused x (M, K) -> y (M, N): quantise a block of tokens into the scratch, multiply, next block. The codes and scales of
// the activations are used while they are in cache and never allocated by the caller.
#include "panel8.hpp"
#include "scratch.hpp"
#include "ternary_linear.hpp"
#include "threads.hpp"

namespace bitnet {
namespace {

struct Rows {
    float* scale;
    int32_t* sum;
    int8_t* q;
};
constexpr int64_t kRowOverhead = sizeof(float) + sizeof(int32_t);

void quantize_rows(const Kernels& kernel, const void* x, DType dtype, int64_t K, int64_t tokens, const Rows& rows,
                   int threads) {
    const int64_t K_padded = padded_k(K);
    threads = useful_threads(threads, tokens * K * 16);
    parallel_for(tokens, even_grain(tokens, threads, 1), threads, [&](int64_t begin, int64_t end) {
        for (int64_t m = begin; m < end; ++m)
            kernel.quantize_row(element(x, dtype, m * K), dtype, K, rows.q + m * K_padded, K_padded, rows.scale + m,
                                rows.sum + m);
    });
}

int multiply(const LinearArguments& a, const void* x, DType x_dtype, int threads) {
    const Kernels& kernel = kernels();
    const int64_t K_padded = padded_k(a.K), row_bytes = K_padded + kRowOverhead;
    const int64_t block = token_block(row_bytes) < a.M ? token_block(row_bytes) : a.M;
    thread_local Scratch scratch;
    char* memory = scratch.reserve(static_cast<size_t>(block * row_bytes));
    if (memory == nullptr) return kOutOfMemory;
    // The codes come first: they keep the alignment of the scratch.
    int8_t* q = reinterpret_cast<int8_t*>(memory);
    float* scale = reinterpret_cast<float*>(memory + block * K_padded);
    const Rows rows{scale, reinterpret_cast<int32_t*>(scale + block), q};
    for (int64_t m = 0; m < a.M; m += block) {
        const int64_t tokens = a.M - m < block ? a.M - m : block;
        quantize_rows(kernel, element(x, x_dtype, m * a.K), x_dtype, a.K, tokens, rows, threads);
        run(kernel, &a, 1, {rows.q, rows.sum, rows.scale, m, tokens}, threads);
    }
    return kOk;
}

}  // namespace
}  // namespace bitnet

BITNET_EXPORT int bitnet_cpu_bit_linear(const void* x, int dtype, const uint8_t* panels, int64_t panels_bytes,
                                        const float* w_scale, int64_t w_scale_count, const void* bias, int bias_dtype,
                                        void* y, int64_t M, int64_t N, int64_t K, int threads) {
    using namespace bitnet;
    const LinearArguments a{panels, panels_bytes, w_scale, w_scale_count, bias, bias_dtype, y, dtype, M, N, K};
    if (!valid(a)) return kInvalidArgument;
    if (M == 0 || N == 0) return kOk;
    const FloatState state;
    return multiply(a, x, static_cast<DType>(dtype), clamp_threads(threads));
}
