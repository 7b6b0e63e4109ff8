// Barriers and the functions of a simdgroup. Types are those that MSL has: no 64 bits, no bool, no bfloat.
#pragma once
namespace metal {
enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
inline mem_flags operator|(mem_flags a, mem_flags b) { return (mem_flags)((int)a | (int)b); }

template <class T>
struct mh_lanes {
    const char* slots;
    uint active;
    char* scratch;
    T operator[](uint i) const {
        T value;
        __builtin_memcpy(&value, slots + 64 * i, sizeof value);
        return value;
    }
    bool has(uint i) const { return i < 32 && (active >> i & 1); }
};
template <class T>
inline mh_lanes<T> mh_gather(T value, int operation, int line) {
    static_assert(sizeof(T) <= 64, "a simdgroup value is too large for the shim");
    mh_lanes<T> lanes;
    lanes.slots = mh_exchange(&value, sizeof value, operation, line, &lanes.active, &lanes.scratch);
    return lanes;
}
template <class T>
constexpr bool mh_simd_type = (is_integral_v<element_t<T>> && !is_same_v<element_t<T>, bool> &&
                               sizeof(element_t<T>) <= 4) ||
                              is_same_v<element_t<T>, float> || is_same_v<element_t<T>, half>;

inline void threadgroup_barrier(mem_flags, int line = __builtin_LINE()) { mh_barrier(line); }
inline void simdgroup_barrier(mem_flags, int line = __builtin_LINE()) { mh_gather(0, 1, line); }

// The order of float additions is a butterfly, as on GPUs; no device is promised to have this one.
#define MH_REDUCTION(name, operation, expression)                                                        \
    template <class T>                                                                                   \
    inline T name(T value, int line = __builtin_LINE()) {                                                \
        static_assert(mh_simd_type<T>, #name ": MSL has it for no 64-bit, bool or bfloat type");         \
        auto lanes = mh_gather(value, operation, line);                                                  \
        T t[32];                                                                                         \
        bool has[32];                                                                                    \
        for (uint i = 0; i < 32; i++) {                                                                  \
            has[i] = lanes.has(i);                                                                       \
            if (has[i]) t[i] = lanes[i];                                                                 \
        }                                                                                                \
        for (uint step = 16; step; step >>= 1)                                                           \
            for (uint i = 0; i < step; i++) {                                                            \
                if (!has[i + step]) continue;                                                            \
                T a = has[i] ? t[i] : t[i + step], b = t[i + step];                                      \
                t[i] = has[i] ? (T)(expression) : b;                                                     \
                has[i] = true;                                                                           \
            }                                                                                            \
        return t[0];                                                                                     \
    }
MH_REDUCTION(simd_sum, 10, a + b)
MH_REDUCTION(simd_max, 11, max(a, b))
MH_REDUCTION(simd_min, 12, min(a, b))
MH_REDUCTION(simd_and, 13, a& b)
MH_REDUCTION(simd_or, 14, a | b)

template <class T>
inline T mh_lane(mh_lanes<T> lanes, uint i, int line) {
    if (!lanes.has(i)) mh_fail("a simd shuffle reads a lane that is not there", line);
    return lanes[i];
}
template <class T>
inline T simd_shuffle(T value, ushort i, int line = __builtin_LINE()) {
    static_assert(mh_simd_type<T>, "simd_shuffle: MSL has it for no 64-bit, bool or bfloat type");
    return mh_lane(mh_gather(value, 20, line), i, line);
}
template <class T>
inline T simd_shuffle_xor(T value, ushort mask, int line = __builtin_LINE()) {
    static_assert(mh_simd_type<T>, "simd_shuffle_xor: MSL has it for no 64-bit, bool or bfloat type");
    uint me = mh_current->lane;
    return mh_lane(mh_gather(value, 21, line), me ^ mask, line);
}
// Lanes past the end keep their own value.
template <class T>
inline T simd_shuffle_down(T value, ushort step, int line = __builtin_LINE()) {
    static_assert(mh_simd_type<T>, "simd_shuffle_down: MSL has it for no 64-bit, bool or bfloat type");
    uint me = mh_current->lane;
    auto lanes = mh_gather(value, 22, line);
    return lanes.has(me + step) ? lanes[me + step] : value;
}
template <class T>
inline T simd_broadcast(T value, ushort i, int line = __builtin_LINE()) {
    static_assert(mh_simd_type<T>, "simd_broadcast: MSL has it for no 64-bit, bool or bfloat type");
    return mh_lane(mh_gather(value, 23, line), i, line);
}
inline bool simd_any(bool value, int line = __builtin_LINE()) {
    auto lanes = mh_gather((int)value, 24, line);
    for (uint i = 0; i < 32; i++)
        if (lanes.has(i) && lanes[i]) return true;
    return false;
}
inline bool simd_all(bool value, int line = __builtin_LINE()) {
    auto lanes = mh_gather((int)value, 25, line);
    for (uint i = 0; i < 32; i++)
        if (lanes.has(i) && !lanes[i]) return false;
    return true;
}
}  // namespace metal
