// Contract: bitnet_torch/ops/top_k.py. A threadgroup owns a row and passes over it k times: each time it looks for the
// largest key below the one before. A key is the value's rank and, below it, the id counted from the top, so no two are
// equal and the lower id of equals is the larger key.
#include "group.metal"

inline ulong key_of(float x, uint v) {
    // The two zeros are equal.
    const uint rank = ordered(magnitude(x) == 0u ? 0.0f : x);
    return ulong(rank) << 32 | ulong(0x7FFFFFFFu - v);
}

inline ulong larger(ulong a, ulong b) { return a > b ? a : b; }

inline ulong simd_max_long(ulong value) {
    for (ushort step = 16; step > 0; step /= 2)
        value = larger(value, as_type<ulong>(simd_shuffle_xor(as_type<uint2>(value), step)));
    return value;
}

[[kernel]] void top_k(device const float* x [[buffer(0)]],     // (M, V)
                      device float* values [[buffer(1)]],      // (M, k)
                      device long* ids [[buffer(2)]],          // (M, k)
                      constant uint2& sizes [[buffer(3)]],     // V, k
                      uint m [[threadgroup_position_in_grid]],
                      uint index [[thread_index_in_threadgroup]],
                      uint size [[threads_per_threadgroup]],
                      uint lane [[thread_index_in_simdgroup]],
                      uint simdgroup [[simdgroup_index_in_threadgroup]],
                      uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup ulong bests[32];
    const uint V = sizes.x, k = sizes.y;
    device const float* row = x + ulong(m) * V;
    ulong previous = 0xFFFFFFFFFFFFFFFFul;
    for (uint j = 0; j < k; j++) {
        ulong best = 0;
        for (uint v = index; v < V; v += size) {
            const ulong key = key_of(row[v], v);
            if (key < previous) best = larger(best, key);
        }
        best = simd_max_long(best);
        if (lane == 0) bests[simdgroup] = best;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        previous = simd_max_long(lane < simdgroups ? bests[lane] : 0ul);
        if (index == 0) {
            const uint v = 0x7FFFFFFFu - uint(previous & 0xFFFFFFFFul);
            ids[ulong(m) * k + j] = long(v);
            values[ulong(m) * k + j] = row[v];
        }
        // The table may be overwritten.
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
}
