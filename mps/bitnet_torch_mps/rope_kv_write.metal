// Contract: bitnet_torch/ops/rope_kv_write.py. A simdgroup owns one head of one token, of q, k or v.
//
// A slot that lies outside the cache is not written: the host would have to wait for the device to learn of it.
#include "int8_row.metal"
#include "rotation.metal"

inline void put(device float* cache, ulong at, float value, RowScale) { cache[at] = value; }
inline void put(device half* cache, ulong at, float value, RowScale) { cache[at] = rounded<half>(value); }
inline void put(device bfloat* cache, ulong at, float value, RowScale) { cache[at] = rounded<bfloat>(value); }
inline void put(device char* cache, ulong at, float value, RowScale row) { cache[at] = row_code(value, row); }

// Pair j of a head: turned, or as it is.
template <typename T>
inline Pair<T> load_pair(device const T* head, device const float* cosines, device const float* sines, uint j, uint H,
                         bool turns) {
    if (turns) return turned<T>(widened(head[j]), widened(head[j + H]), cosines[j], sines[j]);
    const Pair<T> pair = {head[j], head[j + H]};
    return pair;
}

template <typename T, typename C>
[[kernel]] void rope_kv_write(device const T* q [[buffer(0)]],             // (B, heads, T, 2 * H)
                              device const T* k [[buffer(1)]],             // (B, kv_heads, T, 2 * H)
                              device const T* v [[buffer(2)]],             // (B, kv_heads, T, 2 * H)
                              device const float* cosines [[buffer(3)]],   // (B or 1, T, H)
                              device const float* sines [[buffer(4)]],     // (B or 1, T, H)
                              device C* keys [[buffer(5)]],                // (B, kv_heads, L, 2 * H)
                              device C* values [[buffer(6)]],              // (B, kv_heads, L, 2 * H)
                              device float* key_scale [[buffer(7)]],       // (B, kv_heads, L) if C is char
                              device float* value_scale [[buffer(8)]],     // (B, kv_heads, L) if C is char
                              device const long* start [[buffer(9)]],      // ()
                              device T* y [[buffer(10)]],                  // (B, heads, T, 2 * H)
                              constant uint4& sizes [[buffer(11)]],        // heads, kv_heads, L, H
                              constant uint& tables [[buffer(12)]],        // 1: a table for each sequence; 0: one for all
                              uint3 group [[threadgroup_position_in_grid]],  // token, head of q, k or v, sequence
                              uint3 groups [[threadgroups_per_grid]],
                              uint lane [[thread_index_in_simdgroup]]) {
    const uint heads = sizes.x, kv_heads = sizes.y, L = sizes.z, H = sizes.w;
    const uint t = group.x, b = group.z, tokens = groups.x;
    const ulong table = (ulong(tables * b) * tokens + t) * H;
    if (group.y < heads) {
        const ulong at = ((ulong(b) * heads + group.y) * tokens + t) * (2 * H);
        for (uint j = lane; j < H; j += 32) {
            const Pair<T> pair = load_pair<T>(q + at, cosines + table, sines + table, j, H, true);
            y[at + j] = pair.first;
            y[at + H + j] = pair.second;
        }
        return;
    }
    const bool is_key = group.y < heads + kv_heads;
    const uint row = b * kv_heads + group.y - heads - (is_key ? 0u : kv_heads);
    const long place = start[0] + long(t);
    if (place < 0 || place >= long(L)) return;
    const ulong slot = ulong(row) * L + ulong(place);
    device const T* head = (is_key ? k : v) + (ulong(row) * tokens + t) * (2 * H);
    device C* cache = (is_key ? keys : values) + slot * (2 * H);
    uint peak = 0;
    for (uint j = lane; j < H; j += 32) {
        const Pair<T> pair = load_pair<T>(head, cosines + table, sines + table, j, H, is_key);
        peak = max(peak, max(magnitude(widened(pair.first)), magnitude(widened(pair.second))));
    }
    const RowScale quantum = row_scale(simd_max(peak));
    for (uint j = lane; j < H; j += 32) {
        const Pair<T> pair = load_pair<T>(head, cosines + table, sines + table, j, H, is_key);
        put(cache, j, widened(pair.first), quantum);
        put(cache, H + j, widened(pair.second), quantum);
    }
    if (is_same_v<C, char> && lane == 0) (is_key ? key_scale : value_scale)[slot] = quantum.scale;
}

#define ROPE_KV_WRITE(T, C)                                               \
    template [[host_name("rope_kv_write_" #T "_" #C)]] [[kernel]]         \
    decltype(rope_kv_write<T, C>) rope_kv_write<T, C>;
ROPE_KV_WRITE(float, float)
ROPE_KV_WRITE(half, half)
ROPE_KV_WRITE(bfloat, bfloat)
ROPE_KV_WRITE(float, char)
ROPE_KV_WRITE(half, char)
ROPE_KV_WRITE(bfloat, char)
