// Contract: bitnet_torch/ops/attention.py, whose order of sums this follows to the bit: eight lanes of a simdgroup make
// a dot product, and the keys are cut into chunks of 64 from the first visible one.
//
// A threadgroup owns one query of one head. It computes the scores twice, for their maximum and for the weights, so
// that no scores go to memory. Keys outside the cache are not visible: the host would have to wait to learn of them.
#include "group.metal"

constant constexpr uint THREADS = 128;
constant constexpr uint SIMDGROUPS = 4;
constant constexpr uint CHUNK = 64;
constant constexpr uint SLOTS = 4;  // elements of the output that a thread holds

inline float from_ordered(uint key) {
    return as_type<float>((key & 0x80000000u) != 0u ? key & 0x7FFFFFFFu : ~key);
}
constant constexpr uint ORDERED_MINUS_INFINITY = 0x007FFFFFu;
constant constexpr uint ORDERED_INFINITY = 0xFF800000u;

// The sum of what eight lanes hold; each of them gets it.
inline float sum_of_eight(float own) {
    float sum = own;
    for (ushort step = 4; step > 0; step /= 2) sum += simd_shuffle_xor(sum, step);
    return sum;
}

// The score of a key, by eight lanes.
template <typename T, typename C>
inline float score(device const T* query, device const C* key, uint D, float factor, float scale, uint lane) {
    float own = 0.0f;
    for (uint d = lane % 8; d < D; d += 8) own += widened(query[d]) * factor * widened(key[d]);
    return sum_of_eight(own) * scale;
}

// exp(gap) for gap <= 0; +0.0 far below.
inline float weight(float gap) { return gap < -86.0f ? 0.0f : exp_of(gap); }

template <typename T, typename C>
[[kernel]] void attention(device const T* q [[buffer(0)]],               // (B, heads, tokens, D)
                          device const C* keys [[buffer(1)]],            // (B, kv_heads, L, D)
                          device const C* values [[buffer(2)]],          // (B, kv_heads, L, D)
                          device const float* key_scale [[buffer(3)]],   // (B, kv_heads, L) if C is char
                          device const float* value_scale [[buffer(4)]], // (B, kv_heads, L) if C is char
                          device const long* start [[buffer(5)]],        // ()
                          device const long* first [[buffer(6)]],        // (B,) if has_first
                          device T* out [[buffer(7)]],                   // (B, tokens, heads, D)
                          constant uint4& sizes [[buffer(8)]],           // heads, kv_heads, L, D
                          constant uint& has_first [[buffer(9)]],
                          constant float& factor [[buffer(10)]],
                          uint3 place [[threadgroup_position_in_grid]],  // query, head, sequence
                          uint3 groups [[threadgroups_per_grid]],
                          uint index [[thread_index_in_threadgroup]],
                          uint lane [[thread_index_in_simdgroup]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]]) {
    threadgroup uint peaks[32];
    threadgroup float p_of[CHUNK];
    threadgroup float w_of[CHUNK];
    const Group group = {index, THREADS, lane, simdgroup, SIMDGROUPS};
    const uint heads = sizes.x, kv_heads = sizes.y, L = sizes.z, D = sizes.w;
    const uint t = place.x, head = place.y, b = place.z, tokens = groups.x;
    const long at = start[0] + long(t);
    const long low = max(min(has_first != 0u ? first[b] : 0l, at), 0l);
    const long last = min(at, long(L) - 1l);
    const uint count = last < low ? 0u : uint(last - low + 1l);
    const ulong slot = ulong(b * kv_heads + head / (heads / kv_heads)) * L + ulong(low);
    device const T* query = q + (ulong(b * heads + head) * tokens + t) * D;
    device T* result = out + (ulong(b * tokens + t) * heads + head) * D;

    uint peak = 0;
    for (uint j0 = simdgroup * 4; j0 < count; j0 += SIMDGROUPS * 4) {
        // A key past the last counts as the last, which changes no maximum.
        const ulong key = slot + min(j0 + lane / 8, count - 1);
        const float scale = is_same_v<C, char> ? key_scale[key] : 1.0f;
        peak = max(peak, ordered(score<T, C>(query, keys + key * D, D, factor, scale, lane)));
    }
    peak = group_max(peak, peaks, group);
    const bool bad = peak >= ORDERED_INFINITY || peak <= ORDERED_MINUS_INFINITY;
    const float m = from_ordered(peak);

    for (uint d0 = index; d0 < (D + THREADS - 1) / THREADS * THREADS; d0 += SLOTS * THREADS) {
        float mixed[SLOTS] = {};
        float total = 0.0f;
        for (uint c = 0; c < count; c += CHUNK) {
            const uint size = min(CHUNK, count - c);
            for (uint j0 = simdgroup * 4; j0 < size; j0 += SIMDGROUPS * 4) {
                const uint j = j0 + lane / 8;
                const ulong key = slot + c + min(j, size - 1);
                const float scale = is_same_v<C, char> ? key_scale[key] : 1.0f;
                const float s = score<T, C>(query, keys + key * D, D, factor, scale, lane);
                if (lane % 8 == 0 && j < size) {
                    const float p = weight(s - m);
                    p_of[j] = p;
                    w_of[j] = is_same_v<C, char> ? p * value_scale[key] : p;
                }
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            float own = 0.0f;
            for (uint j = lane % 8; j < size; j += 8) own += p_of[j];
            total += sum_of_eight(own);
            for (uint i = 0; i < SLOTS && d0 + i * THREADS < D; i++) {
                float sum = 0.0f;
                for (uint j = 0; j < size; j++)
                    sum += w_of[j] * widened(values[(slot + c + j) * D + d0 + i * THREADS]);
                mixed[i] += sum;
            }
            // The weights may be overwritten.
            threadgroup_barrier(mem_flags::mem_threadgroup);
        }
        for (uint i = 0; i < SLOTS && d0 + i * THREADS < D; i++)
            result[d0 + i * THREADS] = rounded<T>(bad ? NAN : mixed[i] / total);
    }
}

#define ATTENTION(T, C) \
    template [[host_name("attention_" #T "_" #C)]] [[kernel]] decltype(attention<T, C>) attention<T, C>;
ATTENTION(float, float)
ATTENTION(half, half)
ATTENTION(bfloat, bfloat)
ATTENTION(float, char)
ATTENTION(half, char)
ATTENTION(bfloat, char)
