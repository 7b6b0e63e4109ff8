// Products that pass over neurons: rows of the one matrix, columns of the other, that a token cannot see.
//
// relu2 makes the gate of a neuron +0.0, whatever its other branch is (glu.hpp), so the row of `up` need not be
// multiplied: its output is never read. A code 0 of the activations adds 0 to every int32 sum of `down`, so its column
// need not be read. Both are exact: int32 sums have no order, and a sum over none is 0 as it is over zeros.
//
// In both matrices the codes of a neuron lie together, which panel8 does not offer ("neuron_rows": rows are neurons,
// "neuron_columns": columns are):
//
//   buffer[neurons][ceil(width/256) chunks][64 bytes]
//   byte b of a chunk holds codes (t + 1) of elements 256 * chunk + 64 * p + b in bits 2p..2p+1, p = 0..3
//
// Padding of the width is code 1, the zero weight.
#pragma once
#include "ternary_linear.hpp"

namespace bitnet {

constexpr int64_t kChunkCodes = 256;
constexpr int64_t kChunkBytes = 64;
inline int64_t chunk_count(int64_t width) { return (width + kChunkCodes - 1) / kChunkCodes; }
constexpr int64_t kListSlack = 16;  // whole vectors are written
inline int64_t neuron_bytes(int64_t width) { return chunk_count(width) * kChunkBytes; }

// Indices of what is not passed over, ascending; returns how many. `list` has room for
// count + kListSlack.
int64_t live_gates(const void* g, DType dtype, int64_t count, int32_t* list);  // all but g <= 0: NaN is alive
int64_t live_codes(const int8_t* x_q, int64_t count, int32_t* list);

// One token. `up.panels` is neuron_rows: writes the outputs of the listed rows, and anything finite elsewhere.
int multiply_rows(const LinearArguments& up, const int8_t* x_q, const float* x_scale, const int32_t* list, int64_t live,
                  int threads);
// One token. `down.panels` is neuron_columns; every code that is not listed must be 0.
int multiply_columns(const LinearArguments& down, const int8_t* x_q, const float* x_scale, const int32_t* list, int64_t live,
                     int threads);

}  // namespace bitnet
