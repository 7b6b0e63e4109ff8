// Gated activation, portable.
#include "glu.hpp"

namespace bitnet {
namespace scalar {

void glu_row(const void* g, const void* u, DType dtype, int64_t count, Activation activation, float* h) {
    for (int64_t i = 0; i < count; ++i)
        h[i] = gated(load_float(g, dtype, i), load_float(u, dtype, i), dtype, activation);
}

}  // namespace scalar
}  // namespace bitnet
