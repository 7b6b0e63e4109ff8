// Scalars, vectors, address spaces and the type traits that kernels use.
#pragma once
#ifdef METAL_HOST_STRICT
#define device __attribute__((address_space(1)))
#define constant const __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#define MH_SHARED static
#else
#define device
#define constant
#define threadgroup
#define MH_SHARED static __attribute__((section("mh_shared"), used))
#endif
#define thread
#define kernel

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef char int8_t;
typedef uchar uint8_t;
typedef short int16_t;
typedef ushort uint16_t;
typedef int int32_t;
typedef uint uint32_t;
typedef long int64_t;
typedef ulong uint64_t;
typedef ulong size_t;
typedef _Float16 half;
typedef __bf16 bfloat;

#define MH_VECTORS(T)                                 \
    typedef T T##2 __attribute__((ext_vector_type(2))); \
    typedef T T##3 __attribute__((ext_vector_type(3))); \
    typedef T T##4 __attribute__((ext_vector_type(4)));
MH_VECTORS(char)
MH_VECTORS(uchar)
MH_VECTORS(short)
MH_VECTORS(ushort)
MH_VECTORS(int)
MH_VECTORS(uint)
MH_VECTORS(long)
MH_VECTORS(ulong)
MH_VECTORS(half)
MH_VECTORS(bfloat)
MH_VECTORS(float)

#define INFINITY __builtin_huge_valf()
#define NAN __builtin_nanf("")

namespace metal {
template <bool B, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
    typedef T type;
};
template <bool B, class T = void>
using enable_if_t = typename enable_if<B, T>::type;
template <class A, class B>
struct is_same {
    static constexpr bool value = false;
};
template <class A>
struct is_same<A, A> {
    static constexpr bool value = true;
};
template <class A, class B>
constexpr bool is_same_v = is_same<A, B>::value;
template <class T>
constexpr bool is_integral_v = __is_integral(T);
template <class T>
constexpr bool is_floating_point_v = is_same_v<T, float> || is_same_v<T, half> || is_same_v<T, bfloat>;

template <class T, int N>
using vec = T __attribute__((ext_vector_type(N)));

// Element type and number of elements of scalars and vectors.
template <class T>
struct elements {
    typedef T type;
    static constexpr int count = 1;
};
template <class T, int N>
struct elements<T __attribute__((ext_vector_type(N)))> {
    typedef T type;
    static constexpr int count = N;
};
template <class T>
using element_t = typename elements<T>::type;
template <class T>
constexpr int count_v = elements<T>::count;

template <class To, class From>
inline To as_type(From value) {
    static_assert(sizeof(To) == sizeof(From), "as_type: the sizes differ");
    To result;
    __builtin_memcpy(&result, &value, sizeof result);
    return result;
}
}  // namespace metal
