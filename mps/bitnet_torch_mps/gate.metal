// The gate of a feed-forward layer, inside a kernel. Contract: bitnet_torch/ops/glu.py.
//
// The exp of silu (number.metal) follows the reference operation by operation, so silu too has its bits.
#include "number.metal"

constant constexpr int NO_GATE = 0;
constant constexpr int RELU2 = 1;
constant constexpr int SILU = 2;

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
