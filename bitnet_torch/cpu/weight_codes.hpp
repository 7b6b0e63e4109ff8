// The codes of four rows of a weight matrix as one row of bytes in the exchange layout (pack_codes.cpp).
#pragma once
#include <cstring>

#include "isa.hpp"

namespace bitnet {

constexpr int64_t kCodesBlock = 2048;

// A matrix on its way to codes. The scale of row n is w_scale[n * w_scale_step]: 0 is one for the matrix.
struct Ternarised {
    const void* w;
    DType dtype;
    int64_t N, K, R;
    const float* w_scale;
    int64_t w_scale_step;

    // Writes the bytes [k, k + count) of row r, count <= kCodesBlock. The int8 codes exist only on the stack.
    void pack(const Kernels& kernel, int64_t r, int64_t k, int64_t count, uint8_t* packed) const {
        int8_t t[4][kCodesBlock];
        for (int j = 0; j < 4; ++j) {
            const int64_t n = r + j * R;
            if (n < N)
                kernel.weight_codes(element(w, dtype, n * K + k), dtype, count, w_scale[n * w_scale_step] / 2, t[j]);
            else
                std::memset(t[j], 0, static_cast<size_t>(count));
        }
        // Each code is t + 1; the four ones together are 0b01010101.
        for (int64_t i = 0; i < count; ++i)
            packed[i] = static_cast<uint8_t>(0x55 + t[0][i] + t[1][i] * 4 + t[2][i] * 16 + t[3][i] * 64);
    }
};

}  // namespace bitnet
