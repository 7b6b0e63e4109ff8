// Exchange layout <-> panel8. Every code survives both ways, so the round trip is the same bytes.
//
// A row of the exchange layout is one 2-bit field of consecutive bytes, and a row of a panel8 step is one 32-bit word
// with four such fields. Both sides move four codes at a time as the fields of a word; every operation stays inside its
// byte, so the byte order of the machine does not matter.
#include "panel8.hpp"

#include <atomic>
#include <cstring>

#include "threads.hpp"

using namespace bitnet;

namespace {

uint32_t load_word(const uint8_t* p) {
    uint32_t word;
    std::memcpy(&word, p, 4);
    return word;
}
void store_word(uint8_t* p, uint32_t word) { std::memcpy(p, &word, 4); }
// A field that holds 3 has both bits set.
uint32_t corrupt_fields(uint32_t fields) { return fields & fields >> 1 & kZeroCodes; }

// One row: 16 bytes of the exchange layout to one word of each step. True if no code was 3.
bool pack_row(const uint8_t* in, int shift, int64_t K, uint8_t* out) {
    uint32_t wrong = 0;
    const auto step = [&](const uint8_t* bytes, uint8_t* word) {
        uint32_t packed = 0;
        for (int p = 0; p < 4; ++p) {
            const uint32_t fields = load_word(bytes + 4 * p) >> shift & kCodeMask;
            wrong |= corrupt_fields(fields);
            packed |= fields << (2 * p);
        }
        store_word(word, packed);
    };
    int64_t k = 0;
    for (; k + kStepK <= K; k += kStepK, out += kStepBytes) step(in + k, out);
    if (k < K) {
        uint8_t last[kStepK];
        std::memset(last, 0x55, sizeof last);  // code 1 in every field
        std::memcpy(last, in + k, static_cast<size_t>(K - k));
        step(last, out);
    }
    return wrong == 0;
}
void pad_row(int64_t K, uint8_t* out) {
    for (int64_t k = 0; k < K; k += kStepK, out += kStepBytes) std::memset(out, 0x55, 4);
}

// Where row n of the exchange layout lies.
struct Exchange {
    int64_t R, K;
    int shift(int64_t n) const { return static_cast<int>(n / R * 2); }
    int64_t offset(int64_t n) const { return n % R * K; }
};
uint8_t* row_of(uint8_t* panels, int64_t n, int64_t K) {
    return panels + n / kPanelRows * panel_bytes(K) + n % kPanelRows * 4;
}

// Byte row r of the exchange layout from the (up to) four rows it holds.
void unpack_row(const uint8_t* const rows[4], int64_t K, uint8_t* out) {
    for (int64_t k = 0; k < K; k += kStepK) {
        const int64_t at = k / kStepK * kStepBytes;
        uint8_t bytes[kStepK];
        for (int p = 0; p < 4; ++p) {
            uint32_t word = 0;
            for (int j = 0; j < 4; ++j) {
                const uint32_t fields = rows[j] == nullptr ? kZeroCodes : load_word(rows[j] + at) >> (2 * p) & kCodeMask;
                word |= fields << (2 * j);
            }
            store_word(bytes + 4 * p, word);
        }
        std::memcpy(out + k, bytes, static_cast<size_t>(K - k < kStepK ? K - k : kStepK));
    }
}

}  // namespace

// kBadValue: a byte holds code 3, in a row past N too. Other codes past N are read as padding.
BITNET_EXPORT int bitnet_cpu_panel8_pack(const uint8_t* packed, int64_t N, int64_t K, uint8_t* panels,
                                         int64_t panels_bytes, int threads) {
    if (!valid_weight(N, K) || panels_bytes != panel8_bytes(N, K)) return kInvalidArgument;
    const Exchange exchange{(N + 3) / 4, K};
    std::atomic<bool> bad{false};
    threads = useful_threads(clamp_threads(threads), N * K * 16);
    const int64_t P = panel_count(N);
    parallel_for(P, even_grain(P, threads, 1), threads, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin * kPanelRows; n < end * kPanelRows; ++n) {
            if (n >= N)
                pad_row(K, row_of(panels, n, K));
            else if (!pack_row(packed + exchange.offset(n), exchange.shift(n), K, row_of(panels, n, K)))
                bad = true;
        }
    });
    for (int64_t n = N; n < exchange.R * 4; ++n)
        for (int64_t k = 0; k < K; ++k)
            if ((packed[exchange.offset(n) + k] >> exchange.shift(n) & 3) == 3) return kBadValue;
    return bad ? kBadValue : kOk;
}

BITNET_EXPORT int bitnet_cpu_panel8_unpack(const uint8_t* panels, int64_t panels_bytes, int64_t N, int64_t K,
                                           uint8_t* packed, int threads) {
    if (!valid_weight(N, K) || panels_bytes != panel8_bytes(N, K)) return kInvalidArgument;
    const int64_t R = (N + 3) / 4;
    threads = useful_threads(clamp_threads(threads), N * K * 16);
    parallel_for(R, even_grain(R, threads, 1), threads, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const uint8_t* rows[4];
            for (int64_t j = 0; j < 4; ++j)
                rows[j] = r + j * R < N ? row_of(const_cast<uint8_t*>(panels), r + j * R, K) : nullptr;
            unpack_row(rows, K, packed + r * K);
        }
    });
    return kOk;
}
