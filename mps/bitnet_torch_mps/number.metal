// Numbers inside a kernel: widening, rounding, and integers out of floats, each with defined bits.
//
// float16 and bfloat16 are widened and rounded with integers, because a GPU may flush their subnormals; maxima are
// taken over magnitude(), because max() drops NaN. Division and sqrt are correctly rounded while fast math is off,
// which is what compile_shader asks for. Nothing may be contracted:
#include <metal_stdlib>
#include <metal_simdgroup>
#include <metal_simdgroup_matrix>
using namespace metal;
#pragma METAL fp contract(off)

// Bits of float32 numbers.
constant constexpr uint BITS_INFINITY = 0x7F800000u;
constant constexpr uint BITS_2_TO_126 = 0x7E800000u;
constant constexpr uint BITS_2_TO_63 = 0x5F000000u;

// What the host passes as a dtype.
constant constexpr uint DTYPE_FLOAT = 0;
constant constexpr uint DTYPE_HALF = 1;
constant constexpr uint DTYPE_NONE = 3;

inline float widened(float x) { return x; }

inline float widened(char x) { return float(x); }

inline float widened(bfloat x) { return as_type<float>(uint(as_type<ushort>(x)) << 16); }

inline float widened(half x) {
    const uint bits = as_type<ushort>(x);
    const uint sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u, mantissa = bits & 0x3FFu;
    // The quantum of a subnormal is 2^-24.
    const uint subnormal = as_type<uint>(float(mantissa) * 5.9604644775390625e-8f);
    const uint normal = (exponent + 112u) << 23 | mantissa << 13;
    const uint special = BITS_INFINITY | mantissa << 13;
    return as_type<float>(sign | (exponent == 0u ? subnormal : (exponent == 31u ? special : normal)));
}

// Round once to T: nearest, ties to even, overflow to infinity.
template <typename T>
inline T rounded(float y);

template <>
inline float rounded<float>(float y) {
    return y;
}

template <>
inline bfloat rounded<bfloat>(float y) {
    const uint bits = as_type<uint>(y), size = bits & 0x7FFFFFFFu;
    const uint kept = size > BITS_INFINITY ? 0x7FC0u : (size + 0x7FFFu + ((size >> 16) & 1u)) >> 16;
    return as_type<bfloat>(ushort(kept | ((bits >> 16) & 0x8000u)));
}

template <>
inline half rounded<half>(float y) {
    const uint bits = as_type<uint>(y), size = bits & 0x7FFFFFFFu;
    // From 2^-14 on a float16 is normal: the exponent moves down by 112, 13 bits are rounded off.
    const uint normal = min((size + 0xFFFu + ((size >> 13) & 1u) - (112u << 23)) >> 13, 0x7C00u);
    // Below, its quantum is 2^-24, which is that of float32 in [0.5, 1): the sum rounds.
    const uint subnormal = as_type<uint>(as_type<float>(size) + 0.5f) - 0x3F000000u;
    const uint kept = size > BITS_INFINITY ? 0x7E00u : (size < 0x38800000u ? subnormal : normal);
    return as_type<half>(ushort(kept | ((bits >> 16) & 0x8000u)));
}

// One element of a vector whose dtype only the host knows.
inline float load_any(device const void* values, uint dtype, ulong i) {
    if (dtype == DTYPE_FLOAT) return static_cast<device const float*>(values)[i];
    if (dtype == DTYPE_HALF) return widened(static_cast<device const half*>(values)[i]);
    return widened(static_cast<device const bfloat*>(values)[i]);
}

// Round once to a dtype that only the host knows, and store.
inline void store_any(device void* y, uint dtype, ulong i, float value) {
    if (dtype == DTYPE_FLOAT)
        static_cast<device float*>(y)[i] = value;
    else if (dtype == DTYPE_HALF)
        static_cast<device half*>(y)[i] = rounded<half>(value);
    else
        static_cast<device bfloat*>(y)[i] = rounded<bfloat>(value);
}

// |x| as bits, ordered like numbers: NaN above infinity.
inline uint magnitude(float x) { return as_type<uint>(x) & 0x7FFFFFFFu; }

inline bool is_nan(float x) { return magnitude(x) > BITS_INFINITY; }

// Floats as integers in the order of numbers, NaN last.
inline uint ordered(float x) {
    const uint bits = as_type<uint>(x);
    if (is_nan(x)) return 0xFFFFFFFFu;
    return (bits & 0x80000000u) != 0u ? ~bits : bits | 0x80000000u;
}

// v, |v| <= 2^22, rounded to an integer, ties to even: 1.5 * 2^23 leaves no bit for a fraction.
inline int nearest(float v) { return as_type<int>(v + 12582912.0f) - 0x4B400000; }

// v, 0 <= v < 2^31, rounded to an integer, ties to even. From 2^23 on a float32 is an integer already.
inline int nearest_unsigned(float v) {
    return v < 8388608.0f ? as_type<int>(v + 8388608.0f) - 0x4B000000 : int(v);
}

// e of f * 2^e >= 0, 0.5 <= f < 1, given as bits; -126 if it is subnormal.
inline int exponent_of(uint bits) { return int(bits >> 23) - 126; }

// 2^e, exactly, for -126 <= e <= 127.
inline float pow2(int e) { return as_type<float>(uint(e + 127) << 23); }

// An integer rounded once to float32, ties to even.
inline float float_of(ulong s) {
    if (s < 16777216ul) return float(uint(s));
    const uint shift = 40u - uint(clz(s));
    const ulong rest = s & ((1ul << shift) - 1ul), middle = 1ul << (shift - 1u);
    const uint kept = uint(s >> shift);
    const uint up = rest > middle || (rest == middle && (kept & 1u) != 0u) ? 1u : 0u;
    return float(kept + up) * pow2(int(shift));
}

// exp(v) as the contract of glu spells it, for v that is not NaN.
inline float exp_of(float v) {
    const float x = min(max(v, -86.0f), 104.0f);
    const int n = nearest(x * 1.44269504f);
    const float turns = float(n);
    const float r = (x - turns * 0.693359375f) - turns * -2.12194440e-4f;
    float p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    // 2^n itself may be beyond float32.
    const int first = n >> 1;
    return p * pow2(first) * pow2(n - first);
}
