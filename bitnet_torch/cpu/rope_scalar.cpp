// Rotary embedding of one head, portable.
#include "isa.hpp"
#include "number.hpp"

namespace bitnet {
namespace scalar {

void rope_row(const void* x, DType dtype, const float* cos, const float* sin, int64_t half, void* y) {
    for (int64_t j = 0; j < half; ++j) {
        const float x1 = load_float(x, dtype, j), x2 = load_float(x, dtype, j + half);
        const float a = x1 * cos[j], b = x2 * sin[j], c = x2 * cos[j], d = x1 * sin[j];
        store_float(y, dtype, j, a - b);
        store_float(y, dtype, j + half, c + d);
    }
}

}  // namespace scalar
}  // namespace bitnet
