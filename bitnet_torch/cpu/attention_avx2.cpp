// Attention on one chunk of keys, AVX2: the sums of the contract have eight lanes.
#include <type_traits>

#include "attention.hpp"
#include "exponential_avx2.hpp"
#include "isa.hpp"

namespace bitnet {
namespace {

struct LoadCodes {
    static BITNET_INLINE __m256 eight(const void* base, int64_t i) {
        const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(static_cast<const int8_t*>(base) + i));
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
    }
};

void widen_codes(const int8_t* x, int64_t count, float* y) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) _mm256_storeu_ps(y + i, LoadCodes::eight(x, i));
    for (; i < count; ++i) y[i] = static_cast<float>(x[i]);
}

// One call for a chunk: of a row alone, calling is a third of the work.
void widen_rows(const void* x, DType dtype, int64_t x_stride, int64_t rows, int64_t count, float* y, int64_t y_stride) {
    for (int64_t r = 0; r < rows; ++r, y += y_stride) {
        const void* row = element(x, dtype, r * x_stride);
        if (dtype != kBFloat16 || count % 32 != 0) {
            avx2::widen_row(row, dtype, count, y);
            continue;
        }
        for (int64_t i = 0; i < count; i += 32)
            for (int64_t j = i; j < i + 32; j += 8) _mm256_storeu_ps(y + j, LoadBF16::eight(row, j));
    }
}

// The lanes of each of eight accumulators added up as the contract says: four sums of a, then four of b.
BITNET_INLINE __m256 sums(const __m256* a, const __m256* b) {
    __m256 t[4];
    for (int i = 0; i < 4; ++i)  // l0 + l4 .. l3 + l7, of both
        t[i] = _mm256_add_ps(_mm256_permute2f128_ps(a[i], b[i], 0x20), _mm256_permute2f128_ps(a[i], b[i], 0x31));
    const __m256 u = _mm256_add_ps(_mm256_unpacklo_ps(t[0], t[1]), _mm256_unpackhi_ps(t[0], t[1]));
    const __m256 v = _mm256_add_ps(_mm256_unpacklo_ps(t[2], t[3]), _mm256_unpackhi_ps(t[2], t[3]));
    const __m256 even = _mm256_shuffle_ps(u, v, 0x44), odd = _mm256_shuffle_ps(u, v, 0xee);
    return _mm256_add_ps(even, odd);
}

// Some rows with the keys from i on, the last of all again where none are left.
template <class Load, int rows, int count>
BITNET_INLINE void score_tile(const float* q, const CacheRows& keys, int64_t i, int64_t last, int64_t width, float* s,
                              int64_t s_stride) {
    static_assert(rows * count == 8, "sums() takes eight");
    int64_t at[count];
    for (int j = 0; j < count; ++j) at[j] = (i + j < last ? i + j : last) * keys.stride;
    __m256 sum[8];
    for (int j = 0; j < 8; ++j) sum[j] = _mm256_setzero_ps();
    for (int64_t d = 0; d < width; d += 8) {
        __m256 k[count];
        for (int j = 0; j < count; ++j) k[j] = Load::eight(keys.data, at[j] + d);
        for (int r = 0; r < rows; ++r) {
            const __m256 x = _mm256_loadu_ps(q + r * width + d);
            for (int j = 0; j < count; ++j) sum[r * count + j] = _mm256_add_ps(sum[r * count + j], _mm256_mul_ps(x, k[j]));
        }
    }
    float lane[8];
    _mm256_storeu_ps(lane, sums(sum, sum + 4));
    for (int r = 0; r < rows; ++r)
        for (int j = 0; j < count; ++j) s[r * s_stride + i + j] = lane[r * count + j];
}

template <class Load>
void scores_of(const float* q, int64_t rows, const CacheRows& keys, int64_t count, int64_t width, float* s, int64_t s_stride) {
    // Four keys stay in the first-level cache while all rows pass over them.
    for (int64_t i = 0; i < count; i += kKeyGroup) {
        int64_t r = 0;
        for (; !std::is_same<Load, LoadF32>::value && r + 4 <= rows; r += 4)  // each key is widened for four rows
            for (int64_t j = i; j < i + kKeyGroup; j += 2)
                score_tile<Load, 4, 2>(q + r * width, keys, j, count - 1, width, s + r * s_stride, s_stride);
        for (; r < rows; r += 2)
            score_tile<Load, 2, 4>(q + r * width, keys, i, count - 1, width, s + r * s_stride, s_stride);
    }
}

void scores(const float* q, int64_t rows, const CacheRows& keys, int64_t count, int64_t width, float* s, int64_t s_stride) {
    const auto of = keys.codes              ? scores_of<LoadCodes>
                    : keys.dtype == kBFloat16 ? scores_of<LoadBF16>
                    : keys.dtype == kFloat16  ? scores_of<LoadF16>
                                              : scores_of<LoadF32>;
    of(q, rows, keys, count, width, s, s_stride);
}

float peak(float* s, int64_t count, const float* key_scale) {
    const __m256 lowest = _mm256_set1_ps(-float_of(kInfinityBits));
    __m256 largest = lowest, unordered = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256 v = _mm256_loadu_ps(s + i);
        if (key_scale != nullptr) {
            v = _mm256_mul_ps(v, _mm256_loadu_ps(key_scale + i));
            _mm256_storeu_ps(s + i, v);
        }
        largest = _mm256_max_ps(v, largest);  // the second if v is NaN
        unordered = _mm256_or_ps(unordered, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    }
    float lane[8], result = -float_of(kInfinityBits);
    _mm256_storeu_ps(lane, largest);
    for (int j = 0; j < 8; ++j) result = lane[j] > result ? lane[j] : result;
    bool nan = _mm256_movemask_ps(unordered) != 0;
    for (; i < count; ++i) {
        if (key_scale != nullptr) s[i] = s[i] * key_scale[i];
        result = s[i] > result ? s[i] : result;
        nan = nan || s[i] != s[i];
    }
    return nan ? float_of(kQuietNaNBits) : result;
}

BITNET_INLINE __m256 weight(__m256 score, __m256 peak) {
    const __m256 gap = _mm256_sub_ps(score, peak);
    return _mm256_and_ps(exponential(gap), _mm256_cmp_ps(gap, _mm256_set1_ps(kLowestGap), _CMP_GE_OQ));
}
BITNET_INLINE float tree(__m256 l) {
    const __m128 t = _mm_add_ps(_mm256_castps256_ps128(l), _mm256_extractf128_ps(l, 1));
    const __m128 u = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(u, _mm_shuffle_ps(u, u, 1)));
}

float weights(float* s, int64_t count, float peak, const float* value_scale) {
    const __m256 m = _mm256_set1_ps(peak);
    __m256 total = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256 p = weight(_mm256_loadu_ps(s + i), m);
        total = _mm256_add_ps(total, p);
        if (value_scale != nullptr) p = _mm256_mul_ps(p, _mm256_loadu_ps(value_scale + i));
        _mm256_storeu_ps(s + i, p);
    }
    if (i < count) {
        float rest[8];  // absent keys weigh +0.0, which changes no lane
        for (int j = 0; j < 8; ++j) rest[j] = i + j < count ? s[i + j] : -float_of(kInfinityBits);
        const __m256 p = weight(_mm256_loadu_ps(rest), m);
        total = _mm256_add_ps(total, p);
        _mm256_storeu_ps(rest, p);
        for (int j = 0; i + j < count; ++j) s[i + j] = value_scale == nullptr ? rest[j] : rest[j] * value_scale[i + j];
    }
    return tree(total);
}

// Some rows times 8 * vectors elements of every value, from d on, the sums in registers.
template <class Load, int rows, int vectors>
BITNET_INLINE void tile(const float* w, int64_t w_stride, const int64_t* counts, const CacheRows& values, int64_t d,
                        int64_t width, float* o) {
    __m256 sum[rows][vectors];
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v) sum[r][v] = _mm256_setzero_ps();
    int64_t common = counts[0];
    for (int r = 1; r < rows; ++r) common = counts[r] < common ? counts[r] : common;
    for (int64_t i = 0; i < common; ++i) {
        __m256 value[vectors];
        for (int v = 0; v < vectors; ++v) value[v] = Load::eight(values.data, i * values.stride + d + 8 * v);
        for (int r = 0; r < rows; ++r) {
            const __m256 p = _mm256_broadcast_ss(w + r * w_stride + i);
            for (int v = 0; v < vectors; ++v) sum[r][v] = _mm256_add_ps(sum[r][v], _mm256_mul_ps(p, value[v]));
        }
    }
    for (int r = 0; r < rows; ++r) {
        for (int64_t i = common; i < counts[r]; ++i) {  // on the diagonal later rows see more
            const __m256 p = _mm256_broadcast_ss(w + r * w_stride + i);
            for (int v = 0; v < vectors; ++v) {
                const __m256 value = Load::eight(values.data, i * values.stride + d + 8 * v);
                sum[r][v] = _mm256_add_ps(sum[r][v], _mm256_mul_ps(p, value));
            }
        }
        for (int v = 0; v < vectors; ++v) {
            float* out = o + r * width + d + 8 * v;
            _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), sum[r][v]));
        }
    }
}

template <class Load>
void values_of(const float* w, int64_t w_stride, const int64_t* counts, int64_t rows, const CacheRows& values, int64_t width,
               float* o) {
    int64_t r = 0;
    // A stripe of 16 elements of all values stays in the first-level cache while the rows pass over it.
    for (int64_t d = 0; d < width; d += 16)
        for (r = 0; r + 4 <= rows; r += 4)
            tile<Load, 4, 2>(w + r * w_stride, w_stride, counts + r, values, d, width, o + r * width);
    for (; r < rows; ++r) {
        int64_t d = 0;
        for (; d + 64 <= width; d += 64)
            tile<Load, 1, 8>(w + r * w_stride, w_stride, counts + r, values, d, width, o + r * width);
        for (; d < width; d += 16)
            tile<Load, 1, 2>(w + r * w_stride, w_stride, counts + r, values, d, width, o + r * width);
    }
}

void values(const float* w, int64_t w_stride, const int64_t* counts, int64_t rows, const CacheRows& values, int64_t width,
            float* o) {
    const auto of = values.codes              ? values_of<LoadCodes>
                    : values.dtype == kBFloat16 ? values_of<LoadBF16>
                    : values.dtype == kFloat16  ? values_of<LoadF16>
                                                : values_of<LoadF32>;
    of(w, w_stride, counts, rows, values, width, o);
}

}  // namespace

namespace avx2 {
const AttentionKernels attention = {widen_codes, widen_rows, scores, peak, weights, values};
}
}  // namespace bitnet
