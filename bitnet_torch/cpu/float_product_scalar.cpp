// Tiles of float_tile.hpp, portable: the plain loops that the other instruction sets are tested against.
#include "float_tile.hpp"
#include "isa.hpp"

namespace bitnet {
namespace scalar {

void product_tile(const float* a, const float* b, int64_t depth, bool add, float* c) {
    float sum[kTileRows * kStripK] = {};
    for (int64_t d = 0; d < depth; ++d, a += kTileRows, b += kStripK)
        for (int64_t row = 0; row < kTileRows; ++row)
            for (int64_t k = 0; k < kStripK; ++k) sum[row * kStripK + k] += a[row] * b[k];
    for (int64_t i = 0; i < kTileRows * kStripK; ++i) c[i] = add ? c[i] + sum[i] : sum[i];
}

void ternary_strip(const uint8_t* packed, int64_t stride, int64_t rows, float* b) {
    for (int64_t r = 0; r < rows; ++r, packed += stride)
        for (int j = 0; j < 4; ++j, b += kStripK)
            for (int64_t k = 0; k < kStripK; ++k) b[k] = static_cast<float>((packed[k] >> (2 * j) & 3) - 1);
}

void int8_strip(const int8_t* x, int64_t stride, const float* scale, int64_t rows, float* b) {
    for (int64_t r = 0; r < rows; ++r, x += stride, b += kStripK)
        for (int64_t k = 0; k < kStripK; ++k) b[k] = static_cast<float>(x[k]) * scale[r];
}

}  // namespace scalar
}  // namespace bitnet
