// Rows to float32 and back, AVX2.
#include "avx2.hpp"
#include "isa.hpp"

namespace bitnet {
namespace {

template <class Load>
void widen(const void* x, int64_t count, float* y) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) _mm256_storeu_ps(y + i, Load::eight(x, i));
    for (; i < count; ++i) y[i] = load_float(x, Load::dtype, i);
}
template <DType dtype>
void narrow_to(const float* x, int64_t count, void* y) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) store_eight<dtype>(y, i, _mm256_loadu_ps(x + i));
    for (; i < count; ++i) store_float(y, dtype, i, x[i]);
}

}  // namespace

namespace avx2 {

void widen_row(const void* x, DType dtype, int64_t count, float* y) {
    if (dtype == kFloat32) return widen<LoadF32>(x, count, y);
    if (dtype == kBFloat16) return widen<LoadBF16>(x, count, y);
    widen<LoadF16>(x, count, y);
}

void narrow_row(const float* x, int64_t count, DType dtype, void* y) {
    if (dtype == kFloat32) return narrow_to<kFloat32>(x, count, y);
    if (dtype == kBFloat16) return narrow_to<kBFloat16>(x, count, y);
    narrow_to<kFloat16>(x, count, y);
}

}  // namespace avx2
}  // namespace bitnet
