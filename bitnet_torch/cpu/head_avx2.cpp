// What an int8 head and the choice from its scores need, AVX2.
//
// Signed by signed bytes: h takes the sign of x, and maddubs multiplies it by |x|, at most 128 unsigned. A pair of
// products is at most 2 * 128 * 127 = 32512 in magnitude, which an int16 holds, and is widened at once.
#include "avx2.hpp"
#include "isa.hpp"

namespace bitnet {
namespace {

constexpr int kStreams = 4;
constexpr int64_t kStep = 32, kPrefetchBytes = 2048;

BITNET_INLINE void add_step(V& sum, V h, V x, V magnitude) {
    const V pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(h, x));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

// The last, incomplete step of a row.
BITNET_INLINE V load_rest(const int8_t* h, int64_t count) {
    alignas(32) int8_t rest[kStep] = {};
    for (int64_t i = 0; i < count; ++i) rest[i] = h[i];
    return load(rest);
}

// Four rows, a quarter of the rows apart: ternary_gemv_avx2.cpp says why.
void dot_streams(const Int8Job& job, int64_t m, const int64_t row[kStreams]) {
    const int64_t whole = job.K / kStep * kStep, padded = (job.K + kStep - 1) / kStep * kStep;
    const int8_t *x = job.x + m * job.x_stride, *magnitude = x + padded;
    const int8_t* h[kStreams];
    V sum[kStreams];
    for (int i = 0; i < kStreams; ++i) {
        h[i] = job.h + row[i] * job.K;
        sum[i] = zero();
    }
    for (int64_t k = 0; k < whole; k += kStep) {
        const V codes = load(x + k), sizes = load(magnitude + k);
        for (int i = 0; i < kStreams; ++i) {
            _mm_prefetch(reinterpret_cast<const char*>(h[i] + k) + kPrefetchBytes, _MM_HINT_T0);
            add_step(sum[i], load(h[i] + k), codes, sizes);
        }
    }
    for (int i = 0; i < kStreams; ++i) {
        if (whole < job.K)
            add_step(sum[i], load_rest(h[i] + whole, job.K - whole), load(x + whole), load(magnitude + whole));
        store_output(job.y, job.y_dtype, m * job.N + row[i], horizontal_sum(sum[i]), job.x_scale[m],
                     job.h_scale[row[i]], nullptr, kFloat32, row[i]);
    }
}

template <class Load>
void codes(const void* w, int64_t count, float scale, int8_t* h) {
    const __m256 divisor = _mm256_set1_ps(scale);
    const V least = _mm256_set1_epi8(-127);
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) {
        V v[4];
        for (int j = 0; j < 4; ++j) v[j] = _mm256_cvtps_epi32(_mm256_div_ps(Load::eight(w, i + 8 * j), divisor));
        store(h + i, _mm256_max_epi8(narrow(v[0], v[1], v[2], v[3]), least));
    }
    for (; i < count; ++i) {
        const int32_t code = round_to_int(load_float(w, Load::dtype, i) / scale);
        h[i] = static_cast<int8_t>(code > 127 ? 127 : code < -127 ? -127 : code);
    }
}

// Eight lanes of float64 sums of squares.
struct Lanes {
    __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();

    BITNET_INLINE void add(__m256d a, __m256d b) {
        low = _mm256_add_pd(low, _mm256_mul_pd(a, a));
        high = _mm256_add_pd(high, _mm256_mul_pd(b, b));
    }
    BITNET_INLINE double total() const {
        double t[4];
        _mm256_storeu_pd(t, _mm256_add_pd(low, high));
        const double even = t[0] + t[2], odd = t[1] + t[3];
        return even + odd;
    }
};
BITNET_INLINE __m256d lower(__m256 v) { return _mm256_cvtps_pd(_mm256_castps256_ps128(v)); }
BITNET_INLINE __m256d upper(__m256 v) { return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)); }

struct HeadLanes {
    Lanes weight, code, off;
    __m256d scale;

    BITNET_INLINE void add(__m256 w, __m128i h) {
        const V wide = _mm256_cvtepi8_epi32(h);
        const __m256d w0 = lower(w), w1 = upper(w);
        const __m256d r0 = _mm256_mul_pd(_mm256_cvtepi32_pd(_mm256_castsi256_si128(wide)), scale);
        const __m256d r1 = _mm256_mul_pd(_mm256_cvtepi32_pd(_mm256_extracti128_si256(wide, 1)), scale);
        weight.add(w0, w1);
        code.add(r0, r1);
        off.add(_mm256_sub_pd(w0, r0), _mm256_sub_pd(w1, r1));
    }
};

template <class Load>
HeadSums row_sums(const void* w, const int8_t* h, float scale, int64_t count) {
    HeadLanes lanes;
    lanes.scale = _mm256_set1_pd(scale);
    int64_t k = 0;
    for (; k + 8 <= count; k += 8)
        lanes.add(Load::eight(w, k), _mm_loadl_epi64(reinterpret_cast<const __m128i*>(h + k)));
    if (k < count) {  // zeros change no lane
        float values[8] = {};
        int8_t codes[16] = {};
        for (int64_t i = k; i < count; ++i) {
            values[i - k] = load_float(w, Load::dtype, i);
            codes[i - k] = h[i];
        }
        lanes.add(_mm256_loadu_ps(values), _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
    }
    return {lanes.weight.total(), lanes.code.total(), lanes.off.total()};
}

}  // namespace

namespace avx2 {

HeadSums head_sums(const void* w, DType dtype, const int8_t* h, float scale, int64_t count) {
    if (dtype == kFloat32) return row_sums<LoadF32>(w, h, scale, count);
    if (dtype == kBFloat16) return row_sums<LoadBF16>(w, h, scale, count);
    return row_sums<LoadF16>(w, h, scale, count);
}

void head_codes(const void* w, DType dtype, int64_t count, float scale, int8_t* h) {
    if (dtype == kFloat32) return codes<LoadF32>(w, count, scale, h);
    if (dtype == kBFloat16) return codes<LoadBF16>(w, count, scale, h);
    codes<LoadF16>(w, count, scale, h);
}

void int8_rows(const Int8Job& job, int64_t first, int64_t last) {
    const int64_t quarter = (last - first + kStreams - 1) / kStreams;
    for (int64_t i = 0; i < quarter; ++i) {
        // A quarter that runs past the end repeats the last row, which is then written twice with the same value.
        int64_t row[kStreams];
        for (int j = 0; j < kStreams; ++j) {
            const int64_t n = first + i + j * quarter;
            row[j] = n < last ? n : last - 1;
        }
        for (int64_t m = 0; m < job.tokens; ++m) dot_streams(job, m, row);
    }
}

int64_t first_above(const float* x, int64_t from, int64_t count, float limit) {
    const __m256 most = _mm256_set1_ps(limit);
    for (; from + 32 <= count; from += 32) {
        __m256 above[4];
        // Not less-equal, true for NaN.
        for (int j = 0; j < 4; ++j) above[j] = _mm256_cmp_ps(_mm256_loadu_ps(x + from + 8 * j), most, _CMP_NLE_UQ);
        const __m256 any = _mm256_or_ps(_mm256_or_ps(above[0], above[1]), _mm256_or_ps(above[2], above[3]));
        if (_mm256_movemask_ps(any) != 0) break;
    }
    while (from < count && x[from] <= limit) ++from;
    return from;
}

}  // namespace avx2
}  // namespace bitnet
