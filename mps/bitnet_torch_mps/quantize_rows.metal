// The kernel of all ops that end in int8 rows: it gates and normalises on the way, or does not.
//
// Contracts: bitnet_torch/ops/quantize_activation.py, rms_norm_quantize.py and glu_norm_quantize.py. A threadgroup
// owns a row and reads it anew for each of its passes (the norm's peak and sum, the peak, the codes), computing again
// what stands before a pass; so no intermediate row goes to memory, and a row may have any length.
#include "norm.metal"
#include "int8_row.metal"

// Element k of the row, gated, and normalised if there is a weight; as float32.
template <typename T, int GATE>
inline float load_normalised(device const T* x, device const T* u, device const void* weight, uint weight_dtype,
                             ulong row, uint k, float r) {
    const float value = load_gated<T, GATE>(x, u, row + k);
    if (weight_dtype == DTYPE_NONE) return value;
    return widened(normalised<T>(value, r, load_any(weight, weight_dtype, k)));
}

template <typename T, int GATE>
[[kernel]] void quantize_rows(device const T* x [[buffer(0)]],           // (M, K)
                              device const T* u [[buffer(1)]],           // (M, K); not read without a gate
                              device const void* weight [[buffer(2)]],   // (K,); not read without a norm
                              device char* codes [[buffer(3)]],          // (M, K)
                              device float* scale [[buffer(4)]],         // (M,)
                              constant uint2& sizes [[buffer(5)]],       // K, dtype of weight
                              constant float& eps [[buffer(6)]],
                              uint m [[threadgroup_position_in_grid]],
                              uint index [[thread_index_in_threadgroup]],
                              uint size [[threads_per_threadgroup]],
                              uint lane [[thread_index_in_simdgroup]],
                              uint simdgroup [[simdgroup_index_in_threadgroup]],
                              uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup uint peaks[32];
    threadgroup ulong sums[32];
    const Group group = {index, size, lane, simdgroup, simdgroups};
    const uint K = sizes.x, weight_dtype = sizes.y;
    const ulong row = ulong(m) * K;
    float r = 1.0f;
    if (weight_dtype != DTYPE_NONE) r = inverse_rms<T, GATE>(x, u, row, K, eps, peaks, sums, group);
    uint peak = 0;
    for (uint k = index; k < K; k += size)
        peak = max(peak, magnitude(load_normalised<T, GATE>(x, u, weight, weight_dtype, row, k, r)));
    peak = group_max(peak, peaks, group);
    const RowScale quantum = row_scale(peak);
    if (index == 0) scale[m] = quantum.scale;
    for (uint k = index; k < K; k += size)
        codes[row + k] = row_code(load_normalised<T, GATE>(x, u, weight, weight_dtype, row, k, r), quantum);
}

#define QUANTIZE_ROWS(NAME, T, GATE) \
    template [[host_name(NAME "_" #T)]] [[kernel]] decltype(quantize_rows<T, GATE>) quantize_rows<T, GATE>;
