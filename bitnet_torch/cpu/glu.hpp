// The steps of the gated activation, shared by the instruction sets. Contract: bitnet_torch/ops/glu.py.
#pragma once
#include "exponential.hpp"
#include "isa.hpp"

namespace bitnet {
namespace {

BITNET_INLINE float silu(float g) { return g / (1.0f + exponential(-g)); }

BITNET_INLINE float gated(float g, float u, DType dtype, Activation activation) {
    if (activation == kSilu) return round_to(dtype, round_to(dtype, silu(g)) * u);
    if (!(g > 0.0f)) return g != g ? float_of(kQuietNaNBits) : 0.0f;
    const float square = round_to(dtype, g * g);
    return round_to(dtype, square * u);
}

}  // namespace
}  // namespace bitnet
