// Functions of <metal_math>, <metal_integer> and <metal_relational>. What is not declared here is rejected; where an
// overload of MSL takes one type, a mixture of types is ambiguous there and no match here.
#pragma once
namespace metal {
#define MH_FLOAT_FUNCTION(name, expression)                                                        \
    inline float name(float x) { return expression; }                                              \
    inline half name(half h) {                                                                     \
        float x = h;                                                                               \
        return (half)(expression);                                                                 \
    }                                                                                              \
    inline bfloat name(bfloat h) {                                                                 \
        float x = (float)h;                                                                        \
        return (bfloat)(expression);                                                               \
    }                                                                                              \
    template <class V>                                                                             \
    inline enable_if_t<(count_v<V> > 1), V> name(V v) {                                            \
        V r;                                                                                       \
        for (int i = 0; i < count_v<V>; i++) r[i] = name((element_t<V>)v[i]);                      \
        return r;                                                                                  \
    }
MH_FLOAT_FUNCTION(exp, __builtin_expf(x))
MH_FLOAT_FUNCTION(exp2, __builtin_exp2f(x))
MH_FLOAT_FUNCTION(log, __builtin_logf(x))
MH_FLOAT_FUNCTION(sqrt, __builtin_sqrtf(x))
MH_FLOAT_FUNCTION(rsqrt, 1.0f / __builtin_sqrtf(x))
MH_FLOAT_FUNCTION(floor, __builtin_floorf(x))
MH_FLOAT_FUNCTION(ceil, __builtin_ceilf(x))
MH_FLOAT_FUNCTION(rint, __builtin_rintf(x))
MH_FLOAT_FUNCTION(round, __builtin_roundf(x))
MH_FLOAT_FUNCTION(trunc, __builtin_truncf(x))
MH_FLOAT_FUNCTION(fabs, __builtin_fabsf(x))

namespace precise {
using metal::exp;
using metal::exp2;
using metal::log;
using metal::rsqrt;
using metal::sqrt;
inline float divide(float a, float b) { return a / b; }
}  // namespace precise

inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
template <class V>
inline enable_if_t<(count_v<V> > 1), V> fma(V a, V b, V c) {
    V r;
    for (int i = 0; i < count_v<V>; i++) r[i] = fma((float)a[i], (float)b[i], (float)c[i]);
    return r;
}
inline bool isnan(float x) { return __builtin_isnan(x); }
inline bool isinf(float x) { return __builtin_isinf(x); }
inline bool isfinite(float x) { return __builtin_isfinite(x); }

template <class T>
inline enable_if_t<count_v<T> == 1 && is_integral_v<T>, T> abs(T x) {
    return x < 0 ? -x : x;
}
inline float abs(float x) { return __builtin_fabsf(x); }
// As the hardware: of a NaN and a number, the number.
template <class T>
inline enable_if_t<count_v<T> == 1, T> max(T a, T b) {
    return a != a ? b : (b != b ? a : (a < b ? b : a));
}
template <class T>
inline enable_if_t<count_v<T> == 1, T> min(T a, T b) {
    return a != a ? b : (b != b ? a : (b < a ? b : a));
}
template <class V>
inline enable_if_t<(count_v<V> > 1), V> max(V a, V b) {
    V r;
    for (int i = 0; i < count_v<V>; i++) r[i] = max((element_t<V>)a[i], (element_t<V>)b[i]);
    return r;
}
template <class V>
inline enable_if_t<(count_v<V> > 1), V> min(V a, V b) {
    V r;
    for (int i = 0; i < count_v<V>; i++) r[i] = min((element_t<V>)a[i], (element_t<V>)b[i]);
    return r;
}
template <class T>
inline T clamp(T x, T low, T high) {
    return min(max(x, low), high);
}
template <class T>
inline T select(T a, T b, bool c) {
    return c ? b : a;
}
inline uint clz(uint x) { return x ? __builtin_clz(x) : 32u; }
inline ulong clz(ulong x) { return x ? __builtin_clzl(x) : 64ul; }
inline uint ctz(uint x) { return x ? __builtin_ctz(x) : 32u; }
inline uint popcount(uint x) { return __builtin_popcount(x); }
template <class V>
inline element_t<V> dot(V a, V b) {
    element_t<V> r = a[0] * b[0];
    for (int i = 1; i < count_v<V>; i++) r += a[i] * b[i];
    return r;
}
}  // namespace metal
