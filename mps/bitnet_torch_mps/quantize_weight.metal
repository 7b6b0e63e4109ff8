// Contract: bitnet_torch/ops/quantize_weight.py. A thread owns a weight; the scales are made before.
#include "weight_scale.metal"

template <typename T>
[[kernel]] void ternarise(device const T* w [[buffer(0)]],           // (N, K)
                          device const float* scale [[buffer(1)]],   // () or (N,)
                          device char* t [[buffer(2)]],              // (N, K)
                          constant uint& per_row [[buffer(3)]],
                          uint2 place [[thread_position_in_grid]],
                          uint2 size [[threads_per_grid]]) {
    const ulong at = ulong(place.y) * size.x + place.x;
    t[at] = char(ternary(widened(w[at]), scale[per_row != 0u ? place.y : 0u]));
}

#define TERNARISE(T) template [[host_name("ternarise_" #T)]] [[kernel]] decltype(ternarise<T>) ternarise<T>;
TERNARISE(float)
TERNARISE(half)
TERNARISE(bfloat)
