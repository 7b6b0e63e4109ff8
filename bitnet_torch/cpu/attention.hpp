// The steps of attention on one chunk of keys. Contract: bitnet_torch/ops/attention.py.
//
// Rows are queries (one head of one token each) that read the same keys. Where they are many, keys and values are widened
// once into a panel of float32 that all rows pass over; where they are few, each reads them as they lie in the cache.
// `width` is D rounded up to kWidth, zeros past D.
#pragma once
#include "common.hpp"

namespace bitnet {

constexpr int64_t kKeyChunk = 64;  // of the contract
constexpr int64_t kKeyGroup = 4;   // keys that a kernel takes at a time
constexpr int64_t kWidth = 16;
// Below this distance from the largest score a weight is zero.
constexpr float kLowestGap = -86.0f;

// Keys or values of a chunk: floats of some dtype, or int8 codes. The stride counts elements.
struct CacheRows {
    const void* data;
    DType dtype;
    bool codes;
    int64_t stride;
};

struct AttentionKernels {
    void (*widen_codes)(const int8_t* x, int64_t count, float* y);
    // `rows` rows of `count` elements, x_stride apart, to rows y_stride apart.
    void (*widen_rows)(const void* x, DType dtype, int64_t x_stride, int64_t rows, int64_t count, float* y, int64_t y_stride);
    // s[r * s_stride + i] = q[r] . keys[i] over an even number of rows; what it writes past `count`, up to a whole group
    // of keys, means nothing.
    void (*scores)(const float* q, int64_t rows, const CacheRows& keys, int64_t count, int64_t width, float* s,
                   int64_t s_stride);
    // Multiplies by the scales of the keys (may be null); the largest of the scores, or NaN if there is one.
    float (*peak)(float* s, int64_t count, const float* key_scale);
    // Scores to weights, times the scales of the values (may be null); the sum of the weights without them.
    float (*weights)(float* s, int64_t count, float peak, const float* value_scale);
    // o[r] += the sum over the first counts[r] keys of w[r][i] * values[i].
    void (*values)(const float* w, int64_t w_stride, const int64_t* counts, int64_t rows, const CacheRows& values,
                   int64_t width, float* o);
};

}  // namespace bitnet
