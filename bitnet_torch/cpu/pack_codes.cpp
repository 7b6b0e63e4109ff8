// t int8 (N, K) in {-1, 0, 1} <-> the exchange layout uint8 (R, K), R = ceil(N / 4): byte [r, k] holds rows r, r + R,
// r + 2R, r + 3R in bits 0-1, 2-3, 4-5, 6-7, each as t + 1. Rows past N hold code 1; code 3 is corrupt.
//
// These run once for a model, and the loops over k are plain enough for any compiler to vectorise. Bad values are only
// detected here; the launcher names them.
#include <atomic>

#include "common.hpp"
#include "threads.hpp"

using namespace bitnet;

namespace {

// Adds one row of t to its bits of the packed row; true if every value is a code.
bool add_row(const int8_t* BITNET_RESTRICT t, int64_t K, int shift, uint8_t* BITNET_RESTRICT packed) {
    uint8_t wrong = 0;
    for (int64_t k = 0; k < K; ++k) {
        const uint8_t code = static_cast<uint8_t>(t[k] + 1);
        wrong = static_cast<uint8_t>(wrong | (code > 2));
        packed[k] = static_cast<uint8_t>(packed[k] | (code & 3) << shift);
    }
    return wrong == 0;
}
void take_row(const uint8_t* BITNET_RESTRICT packed, int64_t K, int shift, int8_t* BITNET_RESTRICT t) {
    for (int64_t k = 0; k < K; ++k) t[k] = static_cast<int8_t>((packed[k] >> shift & 3) - 1);
}
bool holds_code_3(const uint8_t* packed, int64_t K) {
    uint8_t wrong = 0;
    for (int64_t k = 0; k < K; ++k) wrong = static_cast<uint8_t>(wrong | (packed[k] & packed[k] >> 1 & 0x55));
    return wrong != 0;
}

}  // namespace

// kBadValue: a value is not in {-1, 0, 1}.
BITNET_EXPORT int bitnet_cpu_pack_codes(const int8_t* t, int64_t N, int64_t K, uint8_t* packed, int threads) {
    if (!valid_matrix(N, K)) return kInvalidArgument;
    const int64_t R = N / 4 + (N % 4 != 0);
    std::atomic<bool> bad{false};
    threads = useful_threads(clamp_threads(threads), N * K * 16);
    parallel_for(R, even_grain(R, threads, 1), threads, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            uint8_t* out = packed + r * K;
            uint8_t padding = 0;
            for (int j = 0; j < 4; ++j) padding = static_cast<uint8_t>(padding | (r + j * R >= N) << (2 * j));
            for (int64_t k = 0; k < K; ++k) out[k] = padding;
            for (int j = 0; j < 4 && r + j * R < N; ++j)
                if (!add_row(t + (r + j * R) * K, K, 2 * j, out)) bad = true;
        }
    });
    return bad ? kBadValue : kOk;
}

// kBadValue: a byte holds code 3, in a row past N too.
BITNET_EXPORT int bitnet_cpu_unpack_codes(const uint8_t* packed, int64_t N, int64_t K, int8_t* t, int threads) {
    if (!valid_matrix(N, K)) return kInvalidArgument;
    const int64_t R = N / 4 + (N % 4 != 0);
    std::atomic<bool> bad{false};
    threads = useful_threads(clamp_threads(threads), N * K * 16);
    parallel_for(R, even_grain(R, threads, 1), threads, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            if (holds_code_3(packed + r * K, K)) bad = true;
            for (int j = 0; j < 4 && r + j * R < N; ++j) take_row(packed + r * K, K, 2 * j, t + (r + j * R) * K);
        }
    });
    return bad ? kBadValue : kOk;
}
