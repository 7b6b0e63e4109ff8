// The parts of a ternary product that several ops share.
#pragma once
#include "isa.hpp"

namespace bitnet {

// One matrix and what it makes of the tokens, as callers pass it (ternary_linear.py has the same fields).
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

// Some tokens from `first` on, quantised: what every matrix of a call multiplies.
struct TokenBlock {
    const int8_t* x;  // rows of K_padded, zero past K
    const int32_t* x_sum;
    const float* x_scale;
    int64_t first, tokens;
};

bool valid(const LinearArguments& a);
// Multiplies the block by all matrices, which have one K. Their rows are dealt out to the threads together.
void run(const Kernels& kernel, const LinearArguments* matrices, int64_t count, const TokenBlock& block, int threads);

}  // namespace bitnet
