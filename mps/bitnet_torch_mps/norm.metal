// The root mean square of a row, inside a kernel. Contract: bitnet_torch/ops/rms_norm.py.
//
// A threadgroup owns a row and reads it once for the peak and once for the fixed-point sum of squares; the second
// reading comes out of the cache.
#include "group.metal"
#include "gate.metal"

template <typename T, int GATE>
inline uint row_peak(device const T* x, device const T* u, ulong row, uint K, threadgroup uint* shared, Group group) {
    uint peak = 0;
    for (uint k = group.index; k < K; k += group.size)
        peak = max(peak, magnitude(load_gated<T, GATE>(x, u, row + k)));
    return group_max(peak, shared, group);
}

// r of a row; NaN if the row cannot be normalised.
template <typename T, int GATE>
inline float inverse_rms(device const T* x, device const T* u, ulong row, uint K, float eps, threadgroup uint* peaks,
                         threadgroup ulong* sums, Group group) {
    const uint peak = row_peak<T, GATE>(x, u, row, K, peaks, group);
    const bool bad = peak >= BITS_2_TO_63;
    const int e = max(exponent_of(bad ? 0u : peak), -40);
    const float scale = pow2(22 - e);
    ulong sum = 0;
    for (uint k = group.index; k < K; k += group.size) {
        const float value = bad ? 0.0f : load_gated<T, GATE>(x, u, row + k);
        const int term = nearest(value * scale);
        sum += ulong(long(term) * long(term));
    }
    const float total = float_of(group_sum(sum, sums, group));
    const float quantum = pow2(e - 22);
    const float ms = total / float(K) * (quantum * quantum);
    const float r = 1.0f / precise::sqrt(ms + eps);
    return bad ? NAN : r;
}

// A value, normalised and rounded to T.
template <typename T>
inline T normalised(float x, float r, float weight) {
    return rounded<T>(weight * widened(rounded<T>(x * r)));
}
