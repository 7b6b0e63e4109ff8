// Contract: bitnet_torch/ops/glu.py. A thread owns an element.
#include "gate.metal"

template <typename T, int GATE>
[[kernel]] void glu(device const T* g [[buffer(0)]],
                    device const T* u [[buffer(1)]],
                    device T* h [[buffer(2)]],
                    uint2 place [[thread_position_in_grid]],
                    uint2 size [[threads_per_grid]]) {
    const ulong at = ulong(place.y) * size.x + place.x;
    // A rounding of what is rounded: exact.
    h[at] = rounded<T>(load_gated<T, GATE>(g, u, at));
}

#define GLU(NAME, T, GATE) template [[host_name(NAME "_" #T)]] [[kernel]] decltype(glu<T, GATE>) glu<T, GATE>;
GLU("glu_relu2", float, RELU2)
GLU("glu_relu2", half, RELU2)
GLU("glu_relu2", bfloat, RELU2)
GLU("glu_silu", float, SILU)
GLU("glu_silu", half, SILU)
GLU("glu_silu", bfloat, SILU)
