// The sizes of a tile of float_product.hpp, for the kernels that compute one.
//
//   a: [block of 128 d][tile of 6 rows][d of the block][6]        b: [d of the block][16]        c: [6][16]
#pragma once
#include <cstdint>

namespace bitnet {

constexpr int64_t kTileRows = 6, kStripK = 16, kBlockDepth = 128;

}  // namespace bitnet
