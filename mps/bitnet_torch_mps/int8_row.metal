// The scale of a row of int8 codes. Contract: bitnet_torch/ops/quantize_activation.py.
#include "number.metal"

struct RowScale {
    bool bad;     // the row cannot be quantised
    float inv;    // codes are values * inv, rounded
    float scale;  // the quantum; NaN for a bad row
};

// The scale of a row whose largest magnitude has these bits.
inline RowScale row_scale(uint peak) {
    const bool bad = peak > BITS_2_TO_126;
    const float amax = max(as_type<float>(bad ? 0u : peak), 1e-5f);
    const RowScale result = {bad, 1.0f / amax * 127.0f, bad ? NAN : amax / 127.0f};
    return result;
}

// |value * inv| exceeds 127 by two roundings at most, so its integer needs no clamp.
inline char row_code(float value, RowScale row) { return char(nearest((row.bad ? 0.0f : value) * row.inv)); }
