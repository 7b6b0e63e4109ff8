// Contract: bitnet_torch/ops/int8_linear.py. A simdgroup makes 4 rows for up to 4 tokens.
//
// Apple's GPUs multiply floats faster than 32-bit integers, and a float holds a sum of 1024 products of codes exactly
// (2^24 = 1024 * 128 * 128). So a lane adds up 1024 products as floats and such sums as integers.
#include "number.metal"

constant constexpr uint ROWS = 4;
constant constexpr uint TOKENS = 4;
constant constexpr uint BLOCK = 1024 * 32;  // columns of 1024 products in each lane

template <typename T>
[[kernel]] void int8_linear(device const char* x [[buffer(0)]],         // (M, K)
                            device const float* x_scale [[buffer(1)]],  // (M,)
                            device const char* h [[buffer(2)]],         // (N, K)
                            device const float* h_scale [[buffer(3)]],  // (N,)
                            device T* y [[buffer(4)]],                  // (M, N)
                            constant uint2& sizes [[buffer(5)]],        // M, N
                            constant uint& K [[buffer(6)]],
                            uint2 group [[threadgroup_position_in_grid]],
                            uint lane [[thread_index_in_simdgroup]],
                            uint simdgroup [[simdgroup_index_in_threadgroup]],
                            uint simdgroups [[simdgroups_per_threadgroup]]) {
    const uint M = sizes.x, N = sizes.y, n0 = (group.x * simdgroups + simdgroup) * ROWS, m0 = group.y * TOKENS;
    int totals[TOKENS][ROWS] = {};
    for (uint start = 0; start < K; start += BLOCK) {
        float sums[TOKENS][ROWS] = {};
        for (uint k = start + lane; k < min(start + BLOCK, K); k += 32) {
            // A row or token that is not there is computed as the last one and not stored.
            float codes[ROWS];
            for (uint j = 0; j < ROWS; j++) codes[j] = float(h[ulong(min(n0 + j, N - 1)) * K + k]);
            for (uint i = 0; i < TOKENS; i++) {
                const float value = float(x[ulong(min(m0 + i, M - 1)) * K + k]);
                for (uint j = 0; j < ROWS; j++) sums[i][j] = fma(value, codes[j], sums[i][j]);
            }
        }
        for (uint i = 0; i < TOKENS; i++)
            for (uint j = 0; j < ROWS; j++) totals[i][j] += int(sums[i][j]);
    }
    // Lane i * ROWS + j finishes that output.
    int acc = 0;
    for (uint i = 0; i < TOKENS; i++)
        for (uint j = 0; j < ROWS; j++) {
            const int total = simd_sum(totals[i][j]);
            if (lane == i * ROWS + j) acc = total;
        }
    const uint m = m0 + lane / ROWS, n = n0 + lane % ROWS;
    if (lane >= TOKENS * ROWS || m >= M || n >= N) return;
    const float sum = float_of(ulong(abs(acc)));
    y[ulong(m) * N + n] = rounded<T>((acc < 0 ? -sum : sum) * (x_scale[m] * h_scale[n]));
}

#define INT8_LINEAR(T) \
    template [[host_name("int8_linear_" #T)]] [[kernel]] decltype(int8_linear<T>) int8_linear<T>;
INT8_LINEAR(float)
INT8_LINEAR(half)
INT8_LINEAR(bfloat)
