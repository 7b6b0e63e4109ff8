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

namespace {

// Whole groups of four panels: that is what the kernels take at a time.
constexpr int64_t kGroup = 4;

int64_t group_count(const LinearArguments& a) { return (panel_count(a.N) + kGroup - 1) / kGroup; }

TernaryJob job_for(const LinearArguments& a, const TokenBlock& block) {
    TernaryJob job{};
    job.x = block.x;
    job.x_stride = padded_k(a.K);
    job.x_sum = block.x_sum;
    job.x_scale = block.x_scale;
    job.panels = a.panels;
    job.w_scale = a.w_scale;
    job.w_scale_step = a.w_scale_count == 1 ? 0 : 1;
    job.bias = a.bias;
    job.bias_dtype = static_cast<DType>(a.bias == nullptr ? kFloat32 : a.bias_dtype);
    job.y_dtype = static_cast<DType>(a.y_dtype);
    job.y = static_cast<char*>(a.y) + static_cast<size_t>(block.first * a.N) * dtype_size(job.y_dtype);
    job.tokens = block.tokens;
    job.N = a.N;
    job.K_padded = padded_k(a.K);
    job.ahead = prefetch_ahead().codes;
    return job;
}

}  // namespace

void run(const Kernels& kernel, const LinearArguments* matrices, int64_t count, const TokenBlock& block, int threads) {
    int64_t groups = 0;
    for (int64_t i = 0; i < count; ++i) groups += group_count(matrices[i]);
    threads = useful_threads(threads, block.tokens * groups * kGroup * kPanelRows * padded_k(matrices[0].K));
    parallel_for(groups, even_grain(groups, threads, 1), threads, [&](int64_t begin, int64_t end) {
        // Groups [begin, end) of all matrices one after another; `start` is the first of matrix i.
        for (int64_t i = 0, start = 0; i < count && start < end; start += group_count(matrices[i++])) {
            const int64_t panels = panel_count(matrices[i].N);
            const int64_t first = (begin > start ? begin - start : 0) * kGroup, past = (end - start) * kGroup;
            const int64_t last = past < panels ? past : panels;
            if (first < last) kernel.ternary_panels(job_for(matrices[i], block), first, last);
        }
    });
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

int multiply(const LinearArguments* matrices, int64_t count, const int8_t* x_q, const float* x_scale, int threads) {
    const Kernels& kernel = kernels();
    const int64_t M = matrices[0].M, K = matrices[0].K, K_padded = padded_k(K);
    const bool copy = K_padded != K;
    const int64_t row_bytes = (copy ? K_padded : 0) + static_cast<int64_t>(sizeof(int32_t));
    const int64_t block = token_block(row_bytes) < M ? token_block(row_bytes) : M;
    thread_local Scratch scratch;
    char* memory = scratch.reserve(static_cast<size_t>(block * row_bytes));
    if (memory == nullptr) return kOutOfMemory;
    int32_t* x_sum = reinterpret_cast<int32_t*>(memory);
    int8_t* padded = copy ? reinterpret_cast<int8_t*>(x_sum + block) : nullptr;
    for (int64_t m = 0; m < M; m += block) {
        const int8_t* x = x_q + m * K;
        const int64_t tokens = M - m < block ? M - m : block;
        prepare_rows(kernel, x, K, tokens, padded, x_sum, threads);
        run(kernel, matrices, count, {copy ? padded : x, x_sum, x_scale + m, m, tokens}, threads);
    }
    return kOk;
}

// Checks and runs; matrices[0] says M and K for all.
int checked(const LinearArguments* matrices, int64_t count, const int8_t* x_q, const float* x_scale, int threads) {
    int64_t outputs = 0;
    for (int64_t i = 0; i < count; ++i) {
        const LinearArguments& a = matrices[i];
        if (!valid(a) || a.M != matrices[0].M || a.K != matrices[0].K) return kInvalidArgument;
        outputs |= a.N;
    }
    if (count < 1 || matrices[0].M == 0 || outputs == 0) return count < 1 ? kInvalidArgument : kOk;
    const FloatState state;
    return multiply(matrices, count, x_q, x_scale, clamp_threads(threads));
}

}  // namespace
}  // namespace bitnet

BITNET_EXPORT int bitnet_cpu_ternary_linear(const int8_t* x_q, const float* x_scale, const uint8_t* panels,
                                            int64_t panels_bytes, const float* w_scale, int64_t w_scale_count,
                                            const void* bias, int bias_dtype, void* y, int y_dtype, int64_t M,
                                            int64_t N, int64_t K, int threads) {
    const bitnet::LinearArguments a{panels, panels_bytes, w_scale, w_scale_count, bias, bias_dtype, y, y_dtype, M, N, K};
    return bitnet::checked(&a, 1, x_q, x_scale, threads);
}

BITNET_EXPORT int bitnet_cpu_multi_ternary_linear(const int8_t* x_q, const float* x_scale,
                                                  const bitnet::LinearArguments* matrices, int64_t count, int threads) {
    return bitnet::checked(matrices, count, x_q, x_scale, threads);
}
