// W (N, K) -> packed uint8 (ceil(N / 4), K) in the exchange layout (pack_codes.cpp), w_scale float32 (1 or N). The codes
// of four rows exist only as a block on the stack.
#include <cstring>

#include "threads.hpp"
#include "weight_scale.hpp"

using namespace bitnet;

namespace {

constexpr int64_t kBlock = 2048;

void pack_four(const int8_t* BITNET_RESTRICT a, const int8_t* BITNET_RESTRICT b, const int8_t* BITNET_RESTRICT c,
               const int8_t* BITNET_RESTRICT d, int64_t count, uint8_t* BITNET_RESTRICT packed) {
    // Each code is t + 1; the four ones together are 0b01010101.
    for (int64_t k = 0; k < count; ++k)
        packed[k] = static_cast<uint8_t>(0x55 + a[k] + b[k] * 4 + c[k] * 16 + d[k] * 64);
}

}  // namespace

// by_row: w_scale has N elements, else one. kBadValue: a weight is not finite.
BITNET_EXPORT int bitnet_cpu_quantize_pack_weight(const void* w, int dtype, int64_t N, int64_t K, int by_row,
                                                  uint8_t* packed, float* w_scale, int threads) {
    if (!valid_dtype(dtype) || !valid_matrix(N, K) || N * K > kMaxWeightCount) return kInvalidArgument;
    const Kernels& kernel = kernels();
    const FloatState state;
    const DType d = static_cast<DType>(dtype);
    const int64_t R = N / 4 + (N % 4 != 0);
    threads = useful_threads(clamp_threads(threads), N * K * kWeightWork);
    const int status = by_row != 0 ? row_scales(w, d, N, K, w_scale, threads)
                                   : matrix_scale(w, d, N * K, w_scale, threads);
    if (status != kOk) return status;
    parallel_for(R, even_grain(R, threads, 1), threads, [&](int64_t begin, int64_t end) {
        int8_t t[4][kBlock];
        for (int64_t r = begin; r < end; ++r)
            for (int64_t k = 0; k < K; k += kBlock) {
                const int64_t size = K - k < kBlock ? K - k : kBlock;
                for (int j = 0; j < 4; ++j) {
                    const int64_t n = r + j * R;
                    if (n < N)
                        kernel.weight_codes(element(w, d, n * K + k), d, size, w_scale[by_row != 0 ? n : 0] / 2, t[j]);
                    else
                        std::memset(t[j], 0, static_cast<size_t>(size));
                }
                pack_four(t[0], t[1], t[2], t[3], size, packed + r * K + k);
            }
    });
    return kOk;
}
