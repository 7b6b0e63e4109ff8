// Contract: bitnet_torch/ops/quantize_head.py. A threadgroup owns a row and reads it twice.
#include "group.metal"

template <typename T>
[[kernel]] void quantize_head(device const T* weight [[buffer(0)]],   // (N, K)
                              device char* h [[buffer(1)]],           // (N, K)
                              device float* h_scale [[buffer(2)]],    // (N,)
                              constant uint& K [[buffer(3)]],
                              uint n [[threadgroup_position_in_grid]],
                              uint index [[thread_index_in_threadgroup]],
                              uint size [[threads_per_threadgroup]],
                              uint lane [[thread_index_in_simdgroup]],
                              uint simdgroup [[simdgroup_index_in_threadgroup]],
                              uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup uint peaks[32];
    const Group group = {index, size, lane, simdgroup, simdgroups};
    const ulong row = ulong(n) * K;
    uint peak = 0;
    for (uint k = index; k < K; k += size) peak = max(peak, magnitude(widened(weight[row + k])));
    peak = group_max(peak, peaks, group);
    const bool bad = peak >= BITS_INFINITY;
    const float scale = max(as_type<float>(bad ? 0u : peak) / 127.0f, 1e-12f);
    if (index == 0) h_scale[n] = bad ? NAN : scale;
    // |weight / scale| exceeds 127 by two roundings at most, so its integer needs no clamp.
    for (uint k = index; k < K; k += size)
        h[row + k] = char(nearest((bad ? 0.0f : widened(weight[row + k])) / scale));
}

#define QUANTIZE_HEAD(T) \
    template [[host_name("quantize_head_" #T)]] [[kernel]] decltype(quantize_head<T>) quantize_head<T>;
QUANTIZE_HEAD(float)
QUANTIZE_HEAD(half)
QUANTIZE_HEAD(bfloat)
