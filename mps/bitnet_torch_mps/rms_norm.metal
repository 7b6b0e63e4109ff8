// Contract: bitnet_torch/ops/rms_norm.py. A threadgroup owns a row.
#include "norm.metal"

template <typename T>
[[kernel]] void rms_norm(device const T* x [[buffer(0)]],            // (M, K)
                         device const void* weight [[buffer(1)]],    // (K,)
                         device T* y [[buffer(2)]],                  // (M, K)
                         constant uint2& sizes [[buffer(3)]],        // K, dtype of weight
                         constant float& eps [[buffer(4)]],
                         uint m [[threadgroup_position_in_grid]],
                         uint index [[thread_index_in_threadgroup]],
                         uint size [[threads_per_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]],
                         uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup uint peaks[32];
    threadgroup ulong sums[32];
    const Group group = {index, size, lane, simdgroup, simdgroups};
    const uint K = sizes.x;
    const ulong row = ulong(m) * K;
    const float r = inverse_rms<T, NO_GATE>(x, x, row, K, eps, peaks, sums, group);
    for (uint k = index; k < K; k += size)
        y[row + k] = normalised<T>(widened(x[row + k]), r, load_any(weight, sizes.y, k));
}

#define RMS_NORM(T) template [[host_name("rms_norm_" #T)]] [[kernel]] decltype(rms_norm<T>) rms_norm<T>;
RMS_NORM(float)
RMS_NORM(half)
RMS_NORM(bfloat)
