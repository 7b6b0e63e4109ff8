// Contract: bitnet_torch/ops/ternary_linear_grad_weight.py. A thread owns a column for up to 4 rows and adds the tokens
// one after another: an order of M only.
#include "number.metal"

constant constexpr uint ROWS = 4;

[[kernel]] void ternary_linear_grad_weight(device const void* grad [[buffer(0)]],      // (M, N)
                                           device const char* x [[buffer(1)]],         // (M, K)
                                           device const float* x_scale [[buffer(2)]],  // (M,)
                                           device void* dw [[buffer(3)]],              // (N, K)
                                           constant uint2& sizes [[buffer(4)]],        // M, N
                                           constant uint2& dtypes [[buffer(5)]],       // of grad and dw
                                           uint2 place [[thread_position_in_grid]],
                                           uint2 grid [[threads_per_grid]]) {
    const uint M = sizes.x, N = sizes.y, K = grid.x, k = place.x, n0 = place.y * ROWS;
    float sums[ROWS] = {};
    for (uint m = 0; m < M; m++) {
        const float value = float(x[ulong(m) * K + k]) * x_scale[m];
        for (uint i = 0; i < ROWS; i++)
            sums[i] = fma(load_any(grad, dtypes.x, ulong(m) * N + min(n0 + i, N - 1)), value, sums[i]);
    }
    for (uint i = 0; i < ROWS && n0 + i < N; i++) store_any(dw, dtypes.y, ulong(n0 + i) * K + k, sums[i]);
}
