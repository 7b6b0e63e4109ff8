// How generated entry points learn the types of a kernel's parameters from C++ itself, so that the checks of what the
// host binds are exact.
#pragma once
namespace mh {
struct parameter {
    int kind, buffer, size;  // kind: 1 pointer, 2 reference, 3 a position that the runtime knows
    char element[8];
};
template <class T>
struct name_of {
    static constexpr const char* value = "?";
};
#define MH_NAME(T, text)                            \
    template <>                                     \
    struct name_of<T> {                             \
        static constexpr const char* value = text;  \
    };
MH_NAME(float, "f4")
MH_NAME(half, "f2")
MH_NAME(bfloat, "b2")
MH_NAME(char, "i1")
MH_NAME(uchar, "u1")
MH_NAME(short, "i2")
MH_NAME(ushort, "u2")
MH_NAME(int, "i4")
MH_NAME(uint, "u4")
MH_NAME(long, "i8")
MH_NAME(ulong, "u8")
MH_NAME(void, "v")
template <class T>
struct name_of<metal::atomic<T>> : name_of<T> {};
template <class T>
struct size_of {
    static constexpr int value = sizeof(T);
};
template <>
struct size_of<void> {
    static constexpr int value = 1;
};
template <class P>
struct argument {
    static_assert(sizeof(P) == 0, "a kernel parameter is neither a pointer, a reference nor a position");
};
template <class T>
struct argument<T*> {
    typedef __remove_cv(T) plain;
    static T* get(void* p) { return (T*)p; }
    static void describe(parameter* o, int buffer) {
        o->kind = 1;
        o->buffer = buffer;
        o->size = size_of<plain>::value;
        const char* text = name_of<metal::element_t<plain>>::value;
        for (int i = 0; i < 7 && text[i]; i++) o->element[i] = text[i];
    }
};
template <class T>
struct argument<T&> {
    static T& get(void* p) { return *(T*)p; }
    static void describe(parameter* o, int buffer) {
        argument<T*>::describe(o, buffer);
        o->kind = 2;
    }
};
template <class P>
inline P position(const uint* v) {
    P p;
    __builtin_memset(&p, 0, sizeof p);
    metal::element_t<P> parts[metal::count_v<P> == 3 ? 4 : metal::count_v<P>];
    for (int i = 0; i < metal::count_v<P>; i++) parts[i] = (metal::element_t<P>)v[i];
    __builtin_memcpy(&p, parts, sizeof parts < sizeof p ? sizeof parts : sizeof p);
    return p;
}
template <int I, class F>
struct nth;
template <int I, class R, class H, class... A>
struct nth<I, R(H, A...)> : nth<I - 1, R(A...)> {};
template <class R, class H, class... A>
struct nth<0, R(H, A...)> {
    typedef H type;
};
template <int I, class F>
using nth_t = typename nth<I, F>::type;
}  // namespace mh
