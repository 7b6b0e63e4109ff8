// The quantum of weights, inside kernels. Contract: bitnet_torch/ops/quantize_weight.py.
//
// The weights are seen as S scales of C weights each (the matrix: 1 by N*K). Peaks meet in an integer atomic; sums meet
// in a table of partial sums, because Metal has no 64-bit atomic addition. Both are over integers: order is no matter.
#include "group.metal"

constant constexpr uint WEIGHTS_PER_GROUP = 4096;

// p, so that |w| * 2^p has 30 bits before the point for the largest w.
inline int fixed_point(int peak) { return 30 - exponent_of(as_type<uint>(max(as_type<float>(peak), 1e-5f))); }

template <typename T>
[[kernel]] void weight_peak(device const T* w [[buffer(0)]],             // (S, C)
                            device atomic_int* peak [[buffer(1)]],       // (S,): bits of the largest |w|; starts at 0
                            constant long& C [[buffer(2)]],
                            uint2 place [[threadgroup_position_in_grid]],
                            uint index [[thread_index_in_threadgroup]],
                            uint2 size [[threads_per_threadgroup]]) {
    const ulong first = ulong(place.x) * WEIGHTS_PER_GROUP;
    uint own = 0;
    for (uint i = index; i < WEIGHTS_PER_GROUP && first + i < ulong(C); i += size.x)
        own = max(own, magnitude(widened(w[ulong(place.y) * ulong(C) + first + i])));
    const uint of_lanes = simd_max(own);
    if (index % 32u == 0u) atomic_fetch_max_explicit(&peak[place.y], int(of_lanes), memory_order_relaxed);
}

template <typename T>
[[kernel]] void weight_sum(device const T* w [[buffer(0)]],             // (S, C)
                           device const int* peak [[buffer(1)]],        // (S,)
                           device long* partial [[buffer(2)]],          // (S, groups): sums of |w| * 2^p
                           constant long& C [[buffer(3)]],
                           uint2 place [[threadgroup_position_in_grid]],
                           uint2 groups [[threadgroups_per_grid]],
                           uint index [[thread_index_in_threadgroup]],
                           uint2 size [[threads_per_threadgroup]],
                           uint lane [[thread_index_in_simdgroup]],
                           uint simdgroup [[simdgroup_index_in_threadgroup]],
                           uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup ulong sums[32];
    const Group group = {index, size.x, lane, simdgroup, simdgroups};
    const ulong first = ulong(place.x) * WEIGHTS_PER_GROUP;
    const float scale = pow2(fixed_point(peak[place.y]));
    ulong own = 0;
    for (uint i = index; i < WEIGHTS_PER_GROUP && first + i < ulong(C); i += size.x) {
        const float w_size = as_type<float>(magnitude(widened(w[ulong(place.y) * ulong(C) + first + i])));
        own += ulong(nearest_unsigned(w_size * scale));
    }
    const ulong total = group_sum(own, sums, group);
    if (index == 0) partial[ulong(place.y) * groups.x + place.x] = long(total);
}

// A threadgroup owns a scale.
[[kernel]] void weight_scale(device const int* peak [[buffer(0)]],       // (S,)
                             device const long* partial [[buffer(1)]],   // (S, parts)
                             device float* scale [[buffer(2)]],          // (S,)
                             constant long& C [[buffer(3)]],
                             constant uint& parts [[buffer(4)]],
                             uint s [[threadgroup_position_in_grid]],
                             uint index [[thread_index_in_threadgroup]],
                             uint size [[threads_per_threadgroup]],
                             uint lane [[thread_index_in_simdgroup]],
                             uint simdgroup [[simdgroup_index_in_threadgroup]],
                             uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup ulong sums[32];
    const Group group = {index, size, lane, simdgroup, simdgroups};
    ulong own = 0;
    for (uint i = index; i < parts; i += size) own += ulong(partial[ulong(s) * parts + i]);
    const float total = float_of(group_sum(own, sums, group));
    const float mean = total / float_of(ulong(C)) * pow2(-fixed_point(peak[s]));
    const bool small = as_type<float>(peak[s]) < 1e-5f;
    if (index == 0) scale[s] = small ? 1e-5f : max(mean, 1e-5f);
}

#define WEIGHT_SCALE(T)                                                                              \
    template [[host_name("weight_peak_" #T)]] [[kernel]] decltype(weight_peak<T>) weight_peak<T>;    \
    template [[host_name("weight_sum_" #T)]] [[kernel]] decltype(weight_sum<T>) weight_sum<T>;
WEIGHT_SCALE(float)
WEIGHT_SCALE(half)
WEIGHT_SCALE(bfloat)

// The code -1, 0 or 1 of a weight.
inline int ternary(float w, float scale) {
    const float middle = scale * 0.5f;
    return (w > middle ? 1 : 0) - (w < -middle ? 1 : 0);
}
