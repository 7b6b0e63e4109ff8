// Relaxed atomics of 32 bits. Fibers share one thread of the CPU, so plain accesses are atomic.
#pragma once
namespace metal {
enum memory_order { memory_order_relaxed };
template <class T>
struct atomic {
    static_assert(sizeof(T) == 4, "atomic: int, uint or float only");
    T value;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;

#define MH_ATOMICS(SPACE)                                                                  \
    template <class T>                                                                     \
    inline T atomic_load_explicit(const SPACE atomic<T>* p, memory_order) {                \
        return p->value;                                                                   \
    }                                                                                      \
    template <class T, class U>                                                            \
    inline void atomic_store_explicit(SPACE atomic<T>* p, U x, memory_order) {             \
        p->value = (T)x;                                                                   \
    }                                                                                      \
    template <class T, class U>                                                            \
    inline T atomic_fetch_add_explicit(SPACE atomic<T>* p, U x, memory_order) {            \
        T before = p->value;                                                               \
        p->value = before + (T)x;                                                          \
        return before;                                                                     \
    }                                                                                      \
    template <class T, class U>                                                            \
    inline T atomic_fetch_max_explicit(SPACE atomic<T>* p, U x, memory_order) {            \
        static_assert(is_integral_v<T>, "atomic_fetch_max_explicit: integers only");       \
        T before = p->value;                                                               \
        if ((T)x > before) p->value = (T)x;                                                \
        return before;                                                                     \
    }
#ifdef METAL_HOST_STRICT
MH_ATOMICS(device)
MH_ATOMICS(threadgroup)
#else
MH_ATOMICS()
#endif
}  // namespace metal
