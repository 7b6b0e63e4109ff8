// The parts of a ternary product that bit_linear shares.
#pragma once
#include "isa.hpp"

namespace bitnet {

// What both ops take, as their callers pass it.
struct LinearArguments {
    const uint8_t* panels;
    int64_t panels_bytes;
    const float* w_scale;
    int64_t w_scale_count;  // 1 or N
    const void* bias;
    int bias_dtype;
    void* y;
    int y_dtype;
    int64_t M, N, K;
};

bool valid(const LinearArguments& a);
// A job without tokens: the caller adds x, x_sum, x_scale, y and the count for each block of tokens.
TernaryJob job_for(const LinearArguments& a);
void run(const Kernels& kernel, const TernaryJob& job, int threads);
// y from token m on.
void* output_row(const LinearArguments& a, int64_t m);

}  // namespace bitnet
