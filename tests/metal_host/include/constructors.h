// Vector constructors. `float4(a, b, c, d)` is no C++; a function-like macro turns it into make<float4>(a, b, c, d).
// Must come after everything that declares vectors.
#pragma once
namespace metal {
template <int... N>
struct sum_of {
    static constexpr int value = 0;
};
template <int Head, int... N>
struct sum_of<Head, N...> {
    static constexpr int value = Head + sum_of<N...>::value;
};
template <class V, class A>
inline enable_if_t<count_v<A> == 1> put(thread V& v, thread int& i, A a) {
    v[i++] = (element_t<V>)a;
}
template <class V, class A>
inline enable_if_t<(count_v<A> > 1)> put(thread V& v, thread int& i, A a) {
    for (int k = 0; k < count_v<A>; k++) v[i++] = (element_t<V>)a[k];
}
template <class V>
inline void fill(thread V&, thread int&) {}
template <class V, class A, class... Rest>
inline void fill(thread V& v, thread int& i, A a, Rest... rest) {
    put(v, i, a);
    fill(v, i, rest...);
}
template <class V, class A>
inline enable_if_t<count_v<A> == 1, V> make(A a) {
    return (V)(element_t<V>)a;
}
template <class V, class A>
inline enable_if_t<(count_v<A> > 1), V> make(A a) {
    static_assert(count_v<A> == count_v<V>, "vector constructor: wrong number of components");
    return __builtin_convertvector(a, V);
}
template <class V, class A, class B, class... Rest>
inline V make(A a, B b, Rest... rest) {
    static_assert(sum_of<count_v<A>, count_v<B>, count_v<Rest>...>::value == count_v<V>,
                  "vector constructor: wrong number of components");
    V v;
    int i = 0;
    fill(v, i, a, b, rest...);
    return v;
}
}  // namespace metal
#define float2(...) ::metal::make<float2>(__VA_ARGS__)
#define float3(...) ::metal::make<float3>(__VA_ARGS__)
#define float4(...) ::metal::make<float4>(__VA_ARGS__)
#define half2(...) ::metal::make<half2>(__VA_ARGS__)
#define half4(...) ::metal::make<half4>(__VA_ARGS__)
#define int2(...) ::metal::make<int2>(__VA_ARGS__)
#define int3(...) ::metal::make<int3>(__VA_ARGS__)
#define int4(...) ::metal::make<int4>(__VA_ARGS__)
#define uint2(...) ::metal::make<uint2>(__VA_ARGS__)
#define uint3(...) ::metal::make<uint3>(__VA_ARGS__)
#define uint4(...) ::metal::make<uint4>(__VA_ARGS__)
#define ulong2(...) ::metal::make<ulong2>(__VA_ARGS__)
#define char2(...) ::metal::make<char2>(__VA_ARGS__)
#define char4(...) ::metal::make<char4>(__VA_ARGS__)
#define uchar4(...) ::metal::make<uchar4>(__VA_ARGS__)
#define short4(...) ::metal::make<short4>(__VA_ARGS__)
#define ushort4(...) ::metal::make<ushort4>(__VA_ARGS__)
#define double static_assert(false, "'double' is not supported in Metal"); float
