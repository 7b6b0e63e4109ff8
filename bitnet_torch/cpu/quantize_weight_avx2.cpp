// Weight quantiser, AVX2.
#include "avx2.hpp"
#include "isa.hpp"

namespace bitnet {
namespace {

// rne(|w| * power) is at most 2^30: the conversion is exact, and two additions widen to int64.
BITNET_INLINE V widening_add(V sum, __m256 w, __m256 power) {
    const V v = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_castsi256_ps(abs_bits(w)), power));
    sum = _mm256_add_epi64(sum, _mm256_and_si256(v, _mm256_set1_epi64x(0xffffffff)));
    return _mm256_add_epi64(sum, _mm256_srli_epi64(v, 32));
}

template <class Load>
int64_t sum(const void* w, int64_t count, float power) {
    const __m256 scale = _mm256_set1_ps(power);
    V a = zero(), b = zero();
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        a = widening_add(a, Load::eight(w, i), scale);
        b = widening_add(b, Load::eight(w, i + 8), scale);
    }
    int64_t lane[4];
    store(lane, _mm256_add_epi64(a, b));
    int64_t total = lane[0] + lane[1] + lane[2] + lane[3];
    for (; i < count; ++i) total += round_to_int(float_of(bits_of(load_float(w, Load::dtype, i)) & kAbsMask) * power);
    return total;
}

BITNET_INLINE V code(__m256 w, __m256 high, __m256 low) {
    const V above = _mm256_castps_si256(_mm256_cmp_ps(w, high, _CMP_GT_OQ));
    const V below = _mm256_castps_si256(_mm256_cmp_ps(w, low, _CMP_LT_OQ));
    return _mm256_sub_epi32(below, above);  // true is -1
}

template <class Load>
void codes(const void* w, int64_t count, float half_scale, int8_t* t) {
    const __m256 high = _mm256_set1_ps(half_scale), low = _mm256_set1_ps(-half_scale);
    int64_t i = 0;
    for (; i + 32 <= count; i += 32)
        store(t + i, narrow(code(Load::eight(w, i), high, low), code(Load::eight(w, i + 8), high, low),
                            code(Load::eight(w, i + 16), high, low), code(Load::eight(w, i + 24), high, low)));
    for (; i < count; ++i) {
        const float value = load_float(w, Load::dtype, i);
        t[i] = static_cast<int8_t>((value > half_scale) - (value < -half_scale));
    }
}

}  // namespace

namespace avx2 {

uint32_t weight_max(const void* w, DType dtype, int64_t count) {
    if (dtype == kFloat32) return max_abs_bits<LoadF32>(w, count);
    return dtype == kBFloat16 ? max_abs_bits<LoadBF16>(w, count) : max_abs_bits<LoadF16>(w, count);
}

int64_t weight_sum(const void* w, DType dtype, int64_t count, float power) {
    if (dtype == kFloat32) return sum<LoadF32>(w, count, power);
    return dtype == kBFloat16 ? sum<LoadBF16>(w, count, power) : sum<LoadF16>(w, count, power);
}

void weight_codes(const void* w, DType dtype, int64_t count, float half_scale, int8_t* t) {
    if (dtype == kFloat32) return codes<LoadF32>(w, count, half_scale, t);
    if (dtype == kBFloat16) return codes<LoadBF16>(w, count, half_scale, t);
    codes<LoadF16>(w, count, half_scale, t);
}

}  // namespace avx2
}  // namespace bitnet
