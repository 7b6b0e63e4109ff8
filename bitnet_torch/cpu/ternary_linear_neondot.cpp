// Ternary product, NEON with the dot product of ARMv8.2: a panel is two vectors of four rows, 32 registers.
#include <arm_neon.h>

#include "ternary_dot.hpp"

namespace bitnet {
namespace {

BITNET_NOINLINE void store_sums(const TernaryJob& job, int64_t m, const int64_t* panel, int panels, const int32_t* sums) {
    for (int i = 0; i < panels; ++i, sums += kPanelRows)
        for (int64_t r = 0, n = panel[i] * kPanelRows; r < kPanelRows && n < job.N; ++r, ++n)
            store_output(job.y, job.y_dtype, m * job.N + n, sums[r] - job.x_sum[m], job.x_scale[m],
                         job.w_scale[n * job.w_scale_step], job.bias, job.bias_dtype, n);
}

// Codes are at most 12 (an unshifted plane): as good signed as unsigned, and sdot wants both signed.
struct WideNeon {
    struct Vec {
        int8x16_t low, high;
    };
    static constexpr int kPanels = 1;

    static BITNET_INLINE Vec each(int8x16_t v) { return {v, v}; }
    static BITNET_INLINE int32x4_t words(int8x16_t v) { return vreinterpretq_s32_s8(v); }
    static BITNET_INLINE int8x16_t bytes_of(int32x4_t v) { return vreinterpretq_s8_s32(v); }

    static BITNET_INLINE Vec load(const uint8_t* const* w, int64_t at) {
        const int8_t* p = reinterpret_cast<const int8_t*>(w[0] + at);
        return {vld1q_s8(p), vld1q_s8(p + 16)};
    }
    static BITNET_INLINE Vec zero() { return each(vdupq_n_s8(0)); }
    static BITNET_INLINE Vec bytes(int value) { return each(vdupq_n_s8(static_cast<int8_t>(value))); }
    static BITNET_INLINE Vec four(const int8_t* x) {
        int32_t word;
        std::memcpy(&word, x, 4);
        return each(bytes_of(vdupq_n_s32(word)));
    }
    static BITNET_INLINE Vec both(Vec a, Vec b) { return {vandq_s8(a.low, b.low), vandq_s8(a.high, b.high)}; }
    template <int kBits>
    static BITNET_INLINE int8x16_t shifted(int8x16_t v) {
        return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(v), kBits));
    }
    template <int kBits>
    static BITNET_INLINE Vec down(Vec a) { return {shifted<kBits>(a.low), shifted<kBits>(a.high)}; }
    static BITNET_INLINE Vec plus(Vec a, Vec b) {
        return {bytes_of(vaddq_s32(words(a.low), words(b.low))), bytes_of(vaddq_s32(words(a.high), words(b.high)))};
    }
    static BITNET_INLINE Vec quarter(Vec a) {
        return {bytes_of(vshrq_n_s32(words(a.low), 2)), bytes_of(vshrq_n_s32(words(a.high), 2))};
    }
    static BITNET_INLINE Vec dot(Vec sum, Vec codes, Vec x) {
        return {bytes_of(vdotq_s32(words(sum.low), codes.low, x.low)),
                bytes_of(vdotq_s32(words(sum.high), codes.high, x.high))};
    }
    static BITNET_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }
    static constexpr auto epilogue = store_sums;
    static BITNET_INLINE void store(int32_t* p, Vec a) {
        vst1q_s32(p, words(a.low));
        vst1q_s32(p + 4, words(a.high));
    }
};

}  // namespace

namespace neondot {

// 16 registers of sums, 4 of packed bytes, 4 of codes, the mask and one of x.
void ternary_panels(const TernaryJob& job, int64_t first, int64_t last) {
    if (job.tokens == 1) return gemv<WideNeon, 4>(job, first, last);
    gemm<WideNeon, 2, 4>(job, first, last);
}

}  // namespace neondot
}  // namespace bitnet
