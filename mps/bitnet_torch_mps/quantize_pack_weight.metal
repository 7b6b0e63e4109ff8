// Contract: bitnet_torch/ops/quantize_pack_weight.py. A thread owns a byte, which holds column k of rows r, r + R,
// r + 2R, r + 3R; the scales are made before.
#include "weight_scale.metal"

template <typename T>
[[kernel]] void ternarise_pack(device const T* w [[buffer(0)]],           // (N, K)
                               device const float* scale [[buffer(1)]],   // () or (N,)
                               device uchar* packed [[buffer(2)]],        // (R, K)
                               constant uint2& sizes [[buffer(3)]],       // N, per_row
                               uint2 place [[thread_position_in_grid]],
                               uint2 size [[threads_per_grid]]) {
    uint byte = 0;
    for (uint j = 0; j < 4; j++) {
        const uint n = place.y + j * size.y;
        // Rows past N hold code 1.
        int t = 0;
        if (n < sizes.x) t = ternary(widened(w[ulong(n) * size.x + place.x]), scale[sizes.y != 0u ? n : 0u]);
        byte |= uint(t + 1) << (2 * j);
    }
    packed[ulong(place.y) * size.x + place.x] = uchar(byte);
}

#define TERNARISE_PACK(T) \
    template [[host_name("ternarise_pack_" #T)]] [[kernel]] decltype(ternarise_pack<T>) ternarise_pack<T>;
TERNARISE_PACK(float)
TERNARISE_PACK(half)
TERNARISE_PACK(bfloat)
