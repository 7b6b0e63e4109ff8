// Weight quantiser, portable.
#include "isa.hpp"
#include "number.hpp"

namespace bitnet {
namespace scalar {

uint32_t weight_max(const void* w, DType dtype, int64_t count) {
    uint32_t max = 0;
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t bits = bits_of(load_float(w, dtype, i)) & kAbsMask;
        max = bits > max ? bits : max;
    }
    return max;
}

int64_t weight_sum(const void* w, DType dtype, int64_t count, float power) {
    int64_t sum = 0;
    for (int64_t i = 0; i < count; ++i)
        sum += round_to_int(float_of(bits_of(load_float(w, dtype, i)) & kAbsMask) * power);
    return sum;
}

void weight_codes(const void* w, DType dtype, int64_t count, float half_scale, int8_t* t) {
    for (int64_t i = 0; i < count; ++i) {
        const float value = load_float(w, dtype, i);
        t[i] = static_cast<int8_t>((value > half_scale) - (value < -half_scale));
    }
}

}  // namespace scalar
}  // namespace bitnet
