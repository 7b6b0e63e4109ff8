// Float product, AVX2 and FMA: a vector is the eight lanes of one output, so every tile has the same order.
//
// The tile is 3 tokens x 4 rows: 12 sums, 3 vectors of x and 1 of weights are the 16 registers.
//
//   up to 12 tokens  4 weight rows as they lie in memory, from 4 far streams (ternary_gemv_avx2.cpp says why)
//   more             for each block of 96 tokens, 32 rows, 512 columns    (its x and its sums stay in the second cache)
//                      for each group of 4 rows
//                        widen 4 x 512 weights to 8 KiB                   (first cache), once for all 96 tokens
#include "float_linear.hpp"

#include "avx2.hpp"

namespace bitnet {
namespace {

constexpr int kRows = 4;
constexpr int64_t kBlockK = 512, kBlockTokens = 96, kBlockRows = 32;
// Fewer tokens do not pay for widening the weights into a buffer.
constexpr int64_t kFewTokens = 12;
constexpr int64_t kPrefetchBytes = 2048;

BITNET_INLINE float reduce_lanes(__m256 l) {
    const __m128 t = _mm_add_ps(_mm256_castps256_ps128(l), _mm256_extractf128_ps(l, 1));
    const __m128 u = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(u, _mm_shuffle_ps(u, u, 1)));
}

// The last, incomplete step of a row: the rest is +0.
template <class Load>
BITNET_INLINE __m256 load_rest(const void* w, int64_t k, int64_t K) {
    alignas(32) float rest[kFloatLanes] = {};
    for (int64_t i = k; i < K; ++i) rest[i - k] = load_float(w, Load::dtype, i);
    return _mm256_load_ps(rest);
}

// Adds `count` columns from k0 on, a multiple of 8, of `tokens` rows of x and 4 of w.
template <class Load, int tokens>
BITNET_INLINE void add_tile(const float* x, int64_t x_stride, const void* const w[kRows], int64_t k0, int64_t count,
                            __m256 sum[tokens][kRows]) {
    for (int64_t k = k0; k < k0 + count; k += kFloatLanes) {
        __m256 v[tokens];
        for (int m = 0; m < tokens; ++m) v[m] = _mm256_loadu_ps(x + m * x_stride + k);
        for (int j = 0; j < kRows; ++j) {
            const __m256 weight = Load::eight(w[j], k);
            for (int m = 0; m < tokens; ++m) sum[m][j] = _mm256_fmadd_ps(v[m], weight, sum[m][j]);
        }
    }
}

// All columns of `tokens` tokens from m0 on.
template <class Load, int tokens>
void stream_rows(const FloatJob& job, int64_t m0, const int64_t row[kRows]) {
    constexpr int64_t size = Load::dtype == kFloat32 ? 4 : 2, step = 64 / size;  // columns of a cache line
    const int64_t whole = job.K / kFloatLanes * kFloatLanes;
    const float* x = job.x + m0 * job.x_stride;
    const void* w[kRows];
    __m256 sum[tokens][kRows];
    for (int j = 0; j < kRows; ++j) {
        w[j] = weight_row(job, row[j]);
        for (int m = 0; m < tokens; ++m) sum[m][j] = _mm256_setzero_ps();
    }
    int64_t k = 0;
    for (; k + step <= whole; k += step) {
        for (int j = 0; j < kRows; ++j)
            _mm_prefetch(static_cast<const char*>(w[j]) + k * size + kPrefetchBytes, _MM_HINT_T0);
        add_tile<Load, tokens>(x, job.x_stride, w, k, step, sum);
    }
    add_tile<Load, tokens>(x, job.x_stride, w, k, whole - k, sum);
    for (int j = 0; j < kRows; ++j)
        for (int m = 0; m < tokens; ++m) {
            if (whole < job.K)
                sum[m][j] = _mm256_fmadd_ps(_mm256_loadu_ps(x + m * job.x_stride + whole),
                                            load_rest<Load>(w[j], whole, job.K), sum[m][j]);
            store_float_output(job, m0 + m, row[j], reduce_lanes(sum[m][j]));
        }
}

template <class Load>
void few_tokens(const FloatJob& job, int64_t first, int64_t last) {
    const int64_t quarter = (last - first + kRows - 1) / kRows;
    for (int64_t i = 0; i < quarter; ++i) {
        // A quarter that runs past the end repeats the last row, which is then written twice with the same value.
        int64_t row[kRows], m = 0;
        for (int j = 0; j < kRows; ++j) {
            const int64_t n = first + i + j * quarter;
            row[j] = n < last ? n : last - 1;
        }
        for (; m + 3 <= job.tokens; m += 3) stream_rows<Load, 3>(job, m, row);
        if (job.tokens - m == 2) stream_rows<Load, 2>(job, m, row);
        if (job.tokens - m == 1) stream_rows<Load, 1>(job, m, row);
    }
}

// Four rows of a K block as float32, kBlockK apart, padded with zeros to whole steps.
template <class Load>
void widen_block(const void* const w[kRows], int64_t k0, int64_t count, int64_t K, float* block) {
    const int64_t whole = K - k0 < count ? K - k0 : count;
    for (int j = 0; j < kRows; ++j) {
        float* out = block + j * kBlockK;
        int64_t k = 0;
        for (; k + kFloatLanes <= whole; k += kFloatLanes) _mm256_store_ps(out + k, Load::eight(w[j], k0 + k));
        if (k < count) _mm256_store_ps(out + k, load_rest<Load>(w[j], k0 + k, K));
    }
}

template <int tokens>
BITNET_INLINE void add_block(const float* x, int64_t x_stride, const float* block, int64_t count, __m256* acc) {
    const void* const w[kRows] = {block, block + kBlockK, block + 2 * kBlockK, block + 3 * kBlockK};
    __m256 sum[tokens][kRows];
    for (int m = 0; m < tokens; ++m)
        for (int j = 0; j < kRows; ++j) sum[m][j] = acc[m * kRows + j];
    add_tile<LoadF32, tokens>(x, x_stride, w, 0, count, sum);
    for (int m = 0; m < tokens; ++m)
        for (int j = 0; j < kRows; ++j) acc[m * kRows + j] = sum[m][j];
}

// Adds one K block of four rows to the sums of all tokens of the block.
void add_tokens(const float* x, int64_t x_stride, int64_t tokens, const float* block, int64_t count, __m256* acc) {
    int64_t m = 0;
    for (; m + 3 <= tokens; m += 3) add_block<3>(x + m * x_stride, x_stride, block, count, acc + m * kRows);
    if (tokens - m == 2) add_block<2>(x + m * x_stride, x_stride, block, count, acc + m * kRows);
    if (tokens - m == 1) add_block<1>(x + m * x_stride, x_stride, block, count, acc + m * kRows);
}

// Up to 96 tokens from m0 on, rows [first, last), 32 at most.
template <class Load>
void multiply_block(const FloatJob& job, int64_t m0, int64_t tokens, int64_t first, int64_t last) {
    alignas(32) float block[kRows * kBlockK];
    __m256 acc[kBlockRows * kBlockTokens];  // [group of 4 rows][token][row]
    const float* x = job.x + m0 * job.x_stride;
    for (int64_t i = 0; i < kBlockRows * tokens; ++i) acc[i] = _mm256_setzero_ps();
    for (int64_t k0 = 0; k0 < job.x_stride; k0 += kBlockK) {
        const int64_t count = job.x_stride - k0 < kBlockK ? job.x_stride - k0 : kBlockK;
        for (int64_t n = first; n < last; n += kRows) {
            const void* w[kRows];
            for (int64_t j = 0; j < kRows; ++j)  // the edge repeats the last row and does not store it
                w[j] = weight_row(job, n + j < last ? n + j : last - 1);
            widen_block<Load>(w, k0, count, job.K, block);
            add_tokens(x + k0, job.x_stride, tokens, block, count, acc + (n - first) * tokens);
        }
    }
    for (int64_t n = first; n < last; ++n)
        for (int64_t m = 0; m < tokens; ++m) {
            const int64_t group = (n - first) / kRows * kRows, j = (n - first) % kRows;
            store_float_output(job, m0 + m, n, reduce_lanes(acc[group * tokens + m * kRows + j]));
        }
}

template <class Load>
void rows(const FloatJob& job, int64_t first, int64_t last) {
    if (job.tokens <= kFewTokens) return few_tokens<Load>(job, first, last);
    for (int64_t m = 0; m < job.tokens; m += kBlockTokens) {
        const int64_t tokens = job.tokens - m < kBlockTokens ? job.tokens - m : kBlockTokens;
        for (int64_t n = first; n < last; n += kBlockRows)
            multiply_block<Load>(job, m, tokens, n, last - n < kBlockRows ? last : n + kBlockRows);
    }
}

template <class Load>
float dot(const float* x, const void* w, int64_t K) {
    const int64_t whole = K / kFloatLanes * kFloatLanes;
    __m256 sum = _mm256_setzero_ps();
    for (int64_t k = 0; k < whole; k += kFloatLanes)
        sum = _mm256_fmadd_ps(_mm256_loadu_ps(x + k), Load::eight(w, k), sum);
    if (whole < K) sum = _mm256_fmadd_ps(_mm256_loadu_ps(x + whole), load_rest<Load>(w, whole, K), sum);
    return reduce_lanes(sum);
}

}  // namespace

namespace avx2 {

float float_dot(const float* x, const void* w, DType dtype, int64_t K) {
    if (dtype == kFloat32) return dot<LoadF32>(x, w, K);
    return dtype == kBFloat16 ? dot<LoadBF16>(x, w, K) : dot<LoadF16>(x, w, K);
}

void float_rows(const FloatJob& job, int64_t first, int64_t last) {
    if (job.w_dtype == kFloat32) return rows<LoadF32>(job, first, last);
    if (job.w_dtype == kBFloat16) return rows<LoadBF16>(job, first, last);
    rows<LoadF16>(job, first, last);
}

}  // namespace avx2
}  // namespace bitnet
