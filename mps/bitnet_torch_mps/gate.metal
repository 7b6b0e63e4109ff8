// The gate of a feed-forward layer, inside a kernel. Contract: bitnet_torch/ops/glu.py.
//
// The exp of silu follows the reference operation by operation, so silu too has its bits.
#include "number.metal"

constant constexpr int NO_GATE = 0;
constant constexpr int RELU2 = 1;
constant constexpr int SILU = 2;

// exp(v) as the contract spells it, for v that is not NaN.
inline float exp_of(float v) {
    const float x = min(max(v, -86.0f), 104.0f);
    const int n = nearest(x * 1.44269504f);
    const float turns = float(n);
    const float r = (x - turns * 0.693359375f) - turns * -2.12194440e-4f;
    float p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    // 2^n itself may be beyond float32.
    const int first = n >> 1;
    return p * pow2(first) * pow2(n - first);
}

inline float silu(float g) { return g / (1.0f + exp_of(is_nan(g) ? 0.0f : -g)); }

// Element `at` of x itself, or of x gated with u, as float32.
template <typename T, int GATE>
inline float load_gated(device const T* x, device const T* u, ulong at) {
    const float g = widened(x[at]);
    if (GATE == NO_GATE) return g;
    const float acted = GATE == RELU2 ? g * g : silu(g);
    const float h = widened(rounded<T>(widened(rounded<T>(acted)) * widened(u[at])));
    if (GATE == SILU) return h;
    // Sign and NaN by their bits: a comparison may flush a subnormal gate.
    const bool alive = as_type<int>(g) > 0 && !is_nan(g);
    return alive ? h : (is_nan(g) ? NAN : 0.0f);
}
