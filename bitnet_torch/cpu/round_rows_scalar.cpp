// Rows to float32 and back, portable.
#include "isa.hpp"
#include "number.hpp"

namespace bitnet {
namespace scalar {

void widen_row(const void* x, DType dtype, int64_t count, float* y) {
    for (int64_t i = 0; i < count; ++i) y[i] = load_float(x, dtype, i);
}

void narrow_row(const float* x, int64_t count, DType dtype, void* y) {
    for (int64_t i = 0; i < count; ++i) store_float(y, dtype, i, x[i]);
}

}  // namespace scalar
}  // namespace bitnet
