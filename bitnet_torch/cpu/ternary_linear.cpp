// x_q int8 (M, K), x_scale (M), panel8 weights, w_scale (1 or N), optional bias -> y (M, N).
#include "ternary_linear.hpp"

#include <cstring>

#include "panel8.hpp"
#include "scratch.hpp"
#include "threads.hpp"

namespace bitnet {

bool valid(const LinearArguments& a) {
    return valid_weight(a.N, a.K) && valid_matrix(a.M, a.N) && valid_matrix(a.M, padded_k(a.K)) &&
           a.panels_bytes == panel8_bytes(a.N, a.K) && (a.w_scale_count == 1 || a.w_scale_count == a.N) &&
           valid_dtype(a.y_dtype) && (a.bias == nullptr || valid_dtype(a.bias_dtype));
}

TernaryJob job_for(const LinearArguments& a) {
    TernaryJob job{};
    job.panels = a.panels;
    job.w_scale = a.w_scale;
    job.w_scale_step = a.w_scale_count == 1 ? 0 : 1;
    job.bias = a.bias;
    job.bias_dtype = static_cast<DType>(a.bias == nullptr ? kFloat32 : a.bias_dtype);
    job.y_dtype = static_cast<DType>(a.y_dtype);
    job.N = a.N;
    job.K_padded = padded_k(a.K);
    return job;
}

void run(const Kernels& kernel, const TernaryJob& job, int threads) {
    const int64_t panels = panel_count(job.N);
    threads = useful_threads(threads, job.tokens * panels * kPanelRows * job.K_padded);
    // Chunks of whole groups of four panels: that is what the kernels take at a time.
    parallel_for(panels, even_grain(panels, threads, 4), threads,
                 [&](int64_t begin, int64_t end) { kernel.ternary_panels(job, begin, end); });
}

void* output_row(const LinearArguments& a, int64_t m) {
    return static_cast<char*>(a.y) + static_cast<size_t>(m * a.N) * dtype_size(static_cast<DType>(a.y_dtype));
}

namespace {

// The kernels read whole steps of 16 and need the sum of each row. Rows that end on a step are used where they are.
void prepare_rows(const Kernels& kernel, const int8_t* x_q, int64_t K, int64_t tokens, int8_t* padded,
                  int32_t* x_sum, int threads) {
    const int64_t K_padded = padded_k(K);
    threads = useful_threads(threads, tokens * K * 4);
    parallel_for(tokens, even_grain(tokens, threads, 1), threads, [&](int64_t begin, int64_t end) {
        for (int64_t m = begin; m < end; ++m) {
            x_sum[m] = kernel.row_sum(x_q + m * K, K);
            if (padded == nullptr) continue;
            std::memcpy(padded + m * K_padded, x_q + m * K, static_cast<size_t>(K));
            std::memset(padded + m * K_padded + K, 0, static_cast<size_t>(K_padded - K));
        }
    });
}

int multiply(const LinearArguments& a, const int8_t* x_q, const float* x_scale, int threads) {
    const Kernels& kernel = kernels();
    TernaryJob job = job_for(a);
    const bool copy = job.K_padded != a.K;
    const int64_t row_bytes = (copy ? job.K_padded : 0) + static_cast<int64_t>(sizeof(int32_t));
    const int64_t block = token_block(row_bytes) < a.M ? token_block(row_bytes) : a.M;
    thread_local Scratch scratch;
    char* memory = scratch.reserve(static_cast<size_t>(block * row_bytes));
    if (memory == nullptr) return kOutOfMemory;
    int32_t* x_sum = reinterpret_cast<int32_t*>(memory);
    int8_t* padded = copy ? reinterpret_cast<int8_t*>(x_sum + block) : nullptr;
    for (int64_t m = 0; m < a.M; m += block) {
        const int8_t* x = x_q + m * a.K;
        job.tokens = a.M - m < block ? a.M - m : block;
        prepare_rows(kernel, x, a.K, job.tokens, padded, x_sum, threads);
        job.x = copy ? padded : x;
        job.x_stride = job.K_padded;
        job.x_sum = x_sum;
        job.x_scale = x_scale + m;
        job.y = output_row(a, m);
        run(kernel, job, threads);
    }
    return kOk;
}

}  // namespace
}  // namespace bitnet

BITNET_EXPORT int bitnet_cpu_ternary_linear(const int8_t* x_q, const float* x_scale, const uint8_t* panels,
                                            int64_t panels_bytes, const float* w_scale, int64_t w_scale_count,
                                            const void* bias, int bias_dtype, void* y, int y_dtype, int64_t M,
                                            int64_t N, int64_t K, int threads) {
    using namespace bitnet;
    const LinearArguments a{panels, panels_bytes, w_scale, w_scale_count, bias, bias_dtype, y, y_dtype, M, N, K};
    if (!valid(a)) return kInvalidArgument;
    if (M == 0 || N == 0) return kOk;
    const FloatState state;
    return multiply(a, x_q, x_scale, clamp_threads(threads));
}
