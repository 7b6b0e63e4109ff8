// The parts of an int8 product that the screened head shares. Contract: bitnet_torch/ops/int8_linear.py.
#pragma once
#include "isa.hpp"

namespace bitnet {

constexpr int64_t kInt8Step = 32;  // the kernels read codes of x in whole steps

inline int64_t padded_int8(int64_t K) { return (K + kInt8Step - 1) / kInt8Step * kInt8Step; }

// Bytes that a token needs in Int8Job::x: its codes and their magnitudes, both padded with zeros.
inline int64_t int8_row_bytes(int64_t K) { return 2 * padded_int8(K); }

// Writes the magnitudes behind the codes `q`, which are padded already.
void add_magnitudes(int8_t* q, int64_t K_padded);

void run(const Kernels& kernel, const Int8Job& job, int threads);

}  // namespace bitnet
