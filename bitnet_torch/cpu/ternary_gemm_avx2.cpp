// Ternary product for many tokens: a block of codes is unpacked to bytes once and reused for every token.
//
//   for each block of 128 tokens                                    (its x stays in L2)
//     for each group of 4 panels = 32 rows
//       for each K block of 256                                     (64 maddubs: the exact limit of an int16)
//         unpack 32 rows x 256 k to 8 KiB of bytes: buffer[k/4][4 panels][8 rows x 4 k]            (L1)
//         for each pair of tokens: 4 panels x 2 tokens in 8 registers, then widen into acc[token][32]
//       write acc through the epilogue
#include "ternary_avx2.hpp"

namespace bitnet {
namespace {

constexpr int64_t kBlockK = 256, kBlockTokens = 128;
constexpr int kGroup = 4;  // panels
constexpr int64_t kGroupRows = kGroup * kPanelRows;

// `from` is the byte offset of the K block inside each panel.
void unpack_block(const uint8_t* const panels[kGroup], int64_t from, int64_t steps, uint8_t* BITNET_RESTRICT buffer) {
    const V mask = _mm256_set1_epi8(3);
    for (int64_t s = 0; s < steps; ++s, from += kStepBytes, buffer += 4 * kGroup * 32)
        for (int i = 0; i < kGroup; ++i) {
            const V v = load(panels[i] + from);
            prefetch(panels[i] + from + 2 * kBlockK);  // the next K block, while this one is multiplied
            store(buffer + 32 * i, _mm256_and_si256(v, mask));
            store(buffer + 128 + 32 * i, _mm256_and_si256(_mm256_srli_epi16(v, 2), mask));
            store(buffer + 256 + 32 * i, _mm256_and_si256(_mm256_srli_epi16(v, 4), mask));
            store(buffer + 384 + 32 * i, _mm256_and_si256(_mm256_srli_epi16(v, 6), mask));
        }
}

BITNET_INLINE void add_to(int32_t* acc, const V sum[kGroup]) {
    const V one = _mm256_set1_epi16(1);
    for (int i = 0; i < kGroup; ++i)
        store(acc + 8 * i, _mm256_add_epi32(load(acc + 8 * i), _mm256_madd_epi16(sum[i], one)));
}

// 32 rows x 2 tokens over `count` k, a multiple of 16.
BITNET_INLINE void tile_pair(const uint8_t* codes, const int8_t* x0, const int8_t* x1, int64_t count, int32_t* acc0,
                             int32_t* acc1) {
    V a[kGroup] = {zero(), zero(), zero(), zero()}, b[kGroup] = {zero(), zero(), zero(), zero()};
    const int8_t* const end = x0 + count;
    const ptrdiff_t apart = x1 - x0;
    for (; x0 < end; x0 += kStepK, codes += 512)
        for (int j = 0; j < 4; ++j) {
            const V p = broadcast4(x0 + 4 * j), q = broadcast4(x0 + apart + 4 * j);
            for (int i = 0; i < kGroup; ++i) {
                const V w = load(codes + 128 * j + 32 * i);
                multiply_add(a[i], w, p);
                multiply_add(b[i], w, q);
            }
        }
    add_to(acc0, a);
    add_to(acc1, b);
}
BITNET_INLINE void tile_single(const uint8_t* codes, const int8_t* x, int64_t count, int32_t* acc) {
    V a[kGroup] = {zero(), zero(), zero(), zero()};
    for (const int8_t* end = x + count; x < end; x += 4, codes += 128)
        for (int i = 0; i < kGroup; ++i) multiply_add(a[i], load(codes + 32 * i), broadcast4(x));
    add_to(acc, a);
}

void multiply_block(const TernaryJob& job, int64_t m0, int64_t tokens, int64_t k0, int64_t count, const uint8_t* codes,
                    int32_t* acc) {
    const int8_t* x = job.x + m0 * job.x_stride + k0;
    int64_t m = 0;
    for (; m + 2 <= tokens; m += 2, x += 2 * job.x_stride, acc += 2 * kGroupRows) {
        // The next pair's x: pieces of 256 bytes a row apart, which the hardware prefetcher does not foresee.
        for (int64_t i = 0; i < count; i += 64) {
            prefetch(x + 2 * job.x_stride + i);
            prefetch(x + 3 * job.x_stride + i);
        }
        tile_pair(codes, x, x + job.x_stride, count, acc, acc + kGroupRows);
    }
    if (m < tokens) tile_single(codes, x, count, acc);
}

void multiply_group(const TernaryJob& job, int64_t m0, int64_t tokens, int64_t group, int64_t last) {
    alignas(64) uint8_t codes[kBlockK * kGroupRows];
    alignas(64) int32_t acc[kBlockTokens * kGroupRows];
    const int64_t panels = last - group < kGroup ? last - group : kGroup;
    const uint8_t* panel[kGroup];
    for (int64_t i = 0; i < kGroup; ++i)  // the edge repeats the last panel and does not store it
        panel[i] = job.panels + (group + (i < panels ? i : panels - 1)) * job.K_padded * 2;
    for (int64_t m = 0; m < tokens; ++m)
        for (int i = 0; i < kGroup; ++i) store(acc + m * kGroupRows + 8 * i, _mm256_set1_epi32(-job.x_sum[m0 + m]));
    for (int64_t k0 = 0; k0 < job.K_padded; k0 += kBlockK) {
        const int64_t count = job.K_padded - k0 < kBlockK ? job.K_padded - k0 : kBlockK;
        unpack_block(panel, k0 * 2, count / kStepK, codes);
        multiply_block(job, m0, tokens, k0, count, codes, acc);
    }
    for (int64_t m = 0; m < tokens; ++m)
        for (int64_t i = 0; i < panels; ++i)
            store_panel(job, m0 + m, group + i, load(acc + m * kGroupRows + 8 * i));
}

}  // namespace

namespace avx2 {

void ternary_gemm(const TernaryJob& job, int64_t first, int64_t last) {
    for (int64_t m0 = 0; m0 < job.tokens; m0 += kBlockTokens) {
        const int64_t tokens = job.tokens - m0 < kBlockTokens ? job.tokens - m0 : kBlockTokens;
        for (int64_t group = first; group < last; group += kGroup) multiply_group(job, m0, tokens, group, last);
    }
}

}  // namespace avx2
}  // namespace bitnet
