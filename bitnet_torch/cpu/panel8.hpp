// The "panel8" layout of ternary codes: one packed copy of a weight serves every kernel of this backend.
//
//   buffer[ceil(N/8) panels][ceil(K/16) steps][32 bytes]      a panel is 8 output rows
//   byte 4r + j of a step holds four codes (t + 1) of row r, k = 16 * step + 4 * p + j in bits 2p..2p+1, p = 0..3
//
// "Plane p" of a 32-byte vector (shift by 2p, mask 3) is 8 rows x 4 k with the four k of a row in one 32-bit lane.
// Its partner in the dot product is one broadcast group of four activations, and a lane of the sum is one output:
// no horizontal sums, and the epilogue works on vectors. Padding (rows and k) is code 1, the zero weight.
#pragma once
#include "common.hpp"

namespace bitnet {

constexpr int64_t kPanelRows = 8;
constexpr int64_t kStepK = 16;
constexpr int64_t kStepBytes = 32;
constexpr uint32_t kCodeMask = 0x03030303u;  // one 2-bit field in each byte of a word
constexpr uint32_t kZeroCodes = 0x01010101u;

inline int64_t panel_count(int64_t N) { return (N + kPanelRows - 1) / kPanelRows; }
inline int64_t padded_k(int64_t K) { return (K + kStepK - 1) / kStepK * kStepK; }
inline int64_t panel_bytes(int64_t K) { return padded_k(K) * 2; }
inline int64_t panel8_bytes(int64_t N, int64_t K) { return panel_count(N) * panel_bytes(K); }
// N and K whose panel8 size, at most a byte for each of 8 * ceil(N/8) x (K + 15) codes, is a valid size.
inline bool valid_weight(int64_t N, int64_t K) {
    return N >= 0 && K >= 0 && K <= kMaxInFeatures && N <= INT64_MAX / 16 / (kMaxInFeatures + kStepK);
}

}  // namespace bitnet
