// Contract: bitnet_torch/ops/float_linear.py, whose order of sums this follows to the bit: eight lanes of a simdgroup
// own an output row, lane i its columns i, i + 8, ... A simdgroup makes 4 rows for up to 4 tokens.
#include "number.metal"

constant constexpr uint TOKENS = 4;

template <typename W>
[[kernel]] void float_linear(device const void* x [[buffer(0)]],       // (M, K)
                             device const W* weight [[buffer(1)]],     // (N, K)
                             device const void* bias [[buffer(2)]],    // (N,)
                             device void* y [[buffer(3)]],             // (M, N)
                             constant uint4& sizes [[buffer(4)]],      // M, N, K, dtype of x
                             constant uint2& dtypes [[buffer(5)]],     // of bias and y
                             uint2 group [[threadgroup_position_in_grid]],
                             uint lane [[thread_index_in_simdgroup]],
                             uint simdgroup [[simdgroup_index_in_threadgroup]],
                             uint simdgroups [[simdgroups_per_threadgroup]]) {
    const uint M = sizes.x, N = sizes.y, K = sizes.z;
    const uint n = (group.x * simdgroups + simdgroup) * 4 + lane / 8, m0 = group.y * TOKENS;
    // A row that is not there is computed as the last one and not stored.
    device const W* row = weight + ulong(min(n, N - 1)) * K;
    float sums[TOKENS] = {};
    // To a multiple of 8 columns: the products past K are +0.0.
    for (uint k = lane % 8; k < (K + 7) / 8 * 8; k += 8) {
        const float w = k < K ? widened(row[k]) : 0.0f;
        for (uint i = 0; i < TOKENS; i++) {
            const ulong at = ulong(min(m0 + i, M - 1)) * K + k;
            sums[i] = fma(k < K ? load_any(x, sizes.w, at) : 0.0f, w, sums[i]);
        }
    }
    for (uint i = 0; i < TOKENS; i++)
        for (ushort step = 4; step > 0; step /= 2) sums[i] += simd_shuffle_xor(sums[i], step);
    for (uint i = 0; i < TOKENS; i++) {
        if (lane % 8 != i || m0 + i >= M || n >= N) continue;
        const float total = dtypes.x == DTYPE_NONE ? sums[i] : sums[i] + load_any(bias, dtypes.x, n);
        store_any(y, dtypes.y, ulong(m0 + i) * N + n, total);
    }
}

#define FLOAT_LINEAR(W) \
    template [[host_name("float_linear_" #W)]] [[kernel]] decltype(float_linear<W>) float_linear<W>;
FLOAT_LINEAR(float)
FLOAT_LINEAR(half)
FLOAT_LINEAR(bfloat)
