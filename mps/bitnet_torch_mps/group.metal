// Reductions over a threadgroup whose size is a multiple of 32. Every thread of it must call them; every thread gets
// the result. They are over integers, so their order is no matter.
#include "number.metal"

struct Group {
    uint index;  // of this thread
    uint size;
    uint lane;
    uint simdgroup;
    uint simdgroups;
};

// MSL has no 64-bit reductions of a simdgroup: 32-bit halves are shuffled.
inline ulong simd_sum_long(ulong value) {
    for (ushort step = 16; step > 0; step /= 2)
        value += as_type<ulong>(simd_shuffle_xor(as_type<uint2>(value), step));
    return value;
}

inline uint group_max(uint value, threadgroup uint* shared, Group group) {
    const uint own = simd_max(value);
    if (group.lane == 0) shared[group.simdgroup] = own;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint result = simd_max(group.lane < group.simdgroups ? shared[group.lane] : 0u);
    // `shared` may be written again.
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return result;
}

inline ulong group_sum(ulong value, threadgroup ulong* shared, Group group) {
    const ulong own = simd_sum_long(value);
    if (group.lane == 0) shared[group.simdgroup] = own;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const ulong result = simd_sum_long(group.lane < group.simdgroups ? shared[group.lane] : 0ul);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return result;
}
