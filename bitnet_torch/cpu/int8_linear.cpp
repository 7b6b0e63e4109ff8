// x_q int8 (M, K), x_scale (M), h int8 (N, K), h_scale (N) -> y (M, N). Contract: bitnet_torch/ops/int8_linear.py.
#include "int8_linear.hpp"

#include <cstring>

#include "scratch.hpp"
#include "threads.hpp"

namespace bitnet {

void add_magnitudes(int8_t* q, int64_t K_padded) {
    // |-128| is 128, which the kernels read as an unsigned byte.
    uint8_t* magnitude = reinterpret_cast<uint8_t*>(q + K_padded);
    for (int64_t k = 0; k < K_padded; ++k) magnitude[k] = static_cast<uint8_t>(q[k] < 0 ? -q[k] : q[k]);
}

void run(const Kernels& kernel, const Int8Job& job, int threads) {
    threads = useful_threads(threads, job.tokens * job.N * job.K);
    parallel_for(job.N, even_grain(job.N, threads, 4), threads,
                 [&](int64_t begin, int64_t end) { kernel.int8_rows(job, begin, end); });
}

namespace {

int multiply(Int8Job job, const int8_t* x_q, const float* x_scale, int64_t M, int threads) {
    const Kernels& kernel = kernels();
    const int64_t row_bytes = int8_row_bytes(job.K) + 1, K_padded = padded_int8(job.K);
    const int64_t block = token_block(row_bytes) < M ? token_block(row_bytes) : M;
    thread_local Scratch scratch;
    char* memory = scratch.reserve(static_cast<size_t>(block * row_bytes));
    if (memory == nullptr) return kOutOfMemory;
    int8_t* rows = reinterpret_cast<int8_t*>(memory);
    job.x = rows;
    job.x_stride = int8_row_bytes(job.K);
    char* y = static_cast<char*>(job.y);
    for (int64_t m0 = 0; m0 < M; m0 += block) {
        job.tokens = M - m0 < block ? M - m0 : block;
        for (int64_t m = 0; m < job.tokens; ++m) {
            int8_t* row = rows + m * job.x_stride;
            std::memcpy(row, x_q + (m0 + m) * job.K, static_cast<size_t>(job.K));
            std::memset(row + job.K, 0, static_cast<size_t>(K_padded - job.K));
            add_magnitudes(row, K_padded);
        }
        job.x_scale = x_scale + m0;
        job.y = y + static_cast<size_t>(m0 * job.N) * dtype_size(job.y_dtype);
        run(kernel, job, threads);
    }
    return kOk;
}

}  // namespace
}  // namespace bitnet

BITNET_EXPORT int bitnet_cpu_int8_linear(const int8_t* x_q, const float* x_scale, const int8_t* h, const float* h_scale,
                                         void* y, int y_dtype, int64_t M, int64_t N, int64_t K, int threads) {
    using namespace bitnet;
    if (!valid_dtype(y_dtype) || !valid_matrix(M, K) || !valid_matrix(N, K) || !valid_matrix(M, N) ||
        K > kMaxInFeatures)
        return kInvalidArgument;
    if (M == 0 || N == 0) return kOk;
    const FloatState state;
    Int8Job job{};
    job.h = h;
    job.h_scale = h_scale;
    job.y = y;
    job.y_dtype = static_cast<DType>(y_dtype);
    job.N = N;
    job.K = K;
    job.ahead = prefetch_ahead().head;
    return multiply(job, x_q, x_scale, M, clamp_threads(threads));
}
