// Contract: bitnet_torch/ops/ternary_linear_grad_input.py. A thread owns a column for up to 4 tokens and adds the rows in
// the order r, r + R, r + 2R, r + 3R, then the next r: an order of N only. A term is a float times -1, 0 or 1: exact.
#include "number.metal"

constant constexpr uint TOKENS = 4;

[[kernel]] void ternary_linear_grad_input(device const void* grad [[buffer(0)]],       // (M, N)
                                          device const uchar* packed [[buffer(1)]],    // (R, K)
                                          device const float* w_scale [[buffer(2)]],   // () or (N,)
                                          device void* dx [[buffer(3)]],               // (M, K)
                                          constant uint4& sizes [[buffer(4)]],         // M, N, K, per_row
                                          constant uint2& dtypes [[buffer(5)]],        // of grad and dx
                                          uint2 place [[thread_position_in_grid]]) {
    const uint M = sizes.x, N = sizes.y, K = sizes.z, R = (N + 3) / 4, k = place.x, m0 = place.y * TOKENS;
    float sums[TOKENS] = {};
    for (uint r = 0; r < R; r++) {
        const uint byte = packed[ulong(r) * K + k];
        for (uint j = 0; j < 4 && r + j * R < N; j++) {
            const uint n = r + j * R;
            const float t = float(int((byte >> (2 * j)) & 3u) - 1), scale = w_scale[sizes.w != 0u ? n : 0u];
            for (uint i = 0; i < TOKENS; i++)
                sums[i] += load_any(grad, dtypes.x, ulong(min(m0 + i, M - 1)) * N + n) * scale * t;
        }
    }
    for (uint i = 0; i < TOKENS && m0 + i < M; i++) store_any(dx, dtypes.y, ulong(m0 + i) * K + k, sums[i]);
}
