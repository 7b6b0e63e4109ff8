// x (M, K), weight (N, K), optional bias -> y (M, N). Contract: bitnet_torch/ops/float_linear.py.
#include "float_linear.hpp"

#include "scratch.hpp"
#include "threads.hpp"

namespace bitnet {
namespace {

// A block of tokens, widened and padded with zeros to whole steps.
void widen_rows(const Kernels& kernel, const void* x, DType dtype, int64_t K, int64_t tokens, float* rows, int threads) {
    const int64_t stride = padded_floats(K);
    threads = useful_threads(threads, tokens * K);
    parallel_for(tokens, even_grain(tokens, threads, 1), threads, [&](int64_t begin, int64_t end) {
        for (int64_t m = begin; m < end; ++m) {
            float* row = rows + m * stride;
            kernel.widen_row(element(x, dtype, m * K), dtype, K, row);
            for (int64_t k = K; k < stride; ++k) row[k] = 0.0f;
        }
    });
}

void run(const Kernels& kernel, const FloatJob& job, int threads) {
    threads = useful_threads(threads, job.tokens * job.N * job.K);
    // Chunks of whole groups of four rows: that is what the kernels take at a time.
    parallel_for(job.N, even_grain(job.N, threads, 4), threads,
                 [&](int64_t begin, int64_t end) { kernel.float_rows(job, begin, end); });
}

int multiply(FloatJob job, const void* x, DType x_dtype, int64_t M, int threads) {
    const Kernels& kernel = kernels();
    job.x_stride = padded_floats(job.K);
    const int64_t row_bytes = (job.x_stride + 1) * static_cast<int64_t>(sizeof(float));
    const int64_t block = token_block(row_bytes) < M ? token_block(row_bytes) : M;
    thread_local Scratch scratch;
    char* memory = scratch.reserve(static_cast<size_t>(block * row_bytes));
    if (memory == nullptr) return kOutOfMemory;
    float* rows = reinterpret_cast<float*>(memory);
    job.x = rows;
    char* y = static_cast<char*>(job.y);
    for (int64_t m = 0; m < M; m += block) {
        job.tokens = M - m < block ? M - m : block;
        job.y = y + static_cast<size_t>(m * job.N) * dtype_size(job.y_dtype);
        widen_rows(kernel, element(x, x_dtype, m * job.K), x_dtype, job.K, job.tokens, rows, threads);
        run(kernel, job, threads);
    }
    return kOk;
}

}  // namespace
}  // namespace bitnet

BITNET_EXPORT int bitnet_cpu_float_linear(const void* x, int x_dtype, const void* weight, int weight_dtype,
                                          const void* bias, int bias_dtype, void* y, int y_dtype, int64_t M, int64_t N,
                                          int64_t K, int threads) {
    using namespace bitnet;
    if (!valid_dtype(x_dtype) || !valid_dtype(weight_dtype) || !valid_dtype(bias_dtype) || !valid_dtype(y_dtype) ||
        !valid_matrix(M, K) || !valid_matrix(N, K) || !valid_matrix(M, N))
        return kInvalidArgument;
    if (M == 0 || N == 0) return kOk;
    const FloatState state;
    FloatJob job{};
    job.w = weight;
    job.w_dtype = static_cast<DType>(weight_dtype);
    job.bias = bias;
    job.bias_dtype = static_cast<DType>(bias_dtype);
    job.y = y;
    job.y_dtype = static_cast<DType>(y_dtype);
    job.N = N;
    job.K = K;
    return multiply(job, x, static_cast<DType>(x_dtype), M, clamp_threads(threads));
}
