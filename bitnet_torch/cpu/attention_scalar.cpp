// Attention on one chunk of keys, portable.
#include "attention.hpp"
#include "exponential.hpp"
#include "isa.hpp"
#include "number.hpp"

namespace bitnet {
namespace {

constexpr int kLanes = 8;

float tree(const float* l) { return ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7])); }

float at(const CacheRows& rows, int64_t i, int64_t d) {
    if (rows.codes) return static_cast<float>(static_cast<const int8_t*>(rows.data)[i * rows.stride + d]);
    return load_float(rows.data, rows.dtype, i * rows.stride + d);
}

float dot(const float* a, const CacheRows& keys, int64_t i, int64_t width) {
    float lane[kLanes] = {};
    for (int64_t d = 0; d < width; d += kLanes)
        for (int j = 0; j < kLanes; ++j) {
            const float product = a[d + j] * at(keys, i, d + j);
            lane[j] = lane[j] + product;
        }
    return tree(lane);
}

void widen_codes(const int8_t* x, int64_t count, float* y) {
    for (int64_t i = 0; i < count; ++i) y[i] = static_cast<float>(x[i]);
}

void widen_rows(const void* x, DType dtype, int64_t x_stride, int64_t rows, int64_t count, float* y, int64_t y_stride) {
    for (int64_t r = 0; r < rows; ++r) scalar::widen_row(element(x, dtype, r * x_stride), dtype, count, y + r * y_stride);
}

void scores(const float* q, int64_t rows, const CacheRows& keys, int64_t count, int64_t width, float* s, int64_t s_stride) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < count; ++i) s[r * s_stride + i] = dot(q + r * width, keys, i, width);
}

float peak(float* s, int64_t count, const float* key_scale) {
    float largest = -float_of(kInfinityBits), nan = 0.0f;
    for (int64_t i = 0; i < count; ++i) {
        if (key_scale != nullptr) s[i] = s[i] * key_scale[i];
        largest = s[i] > largest ? s[i] : largest;
        if (s[i] != s[i]) nan = s[i];
    }
    return nan != nan ? nan : largest;
}

float weights(float* s, int64_t count, float peak, const float* value_scale) {
    float lane[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) {
        const float gap = s[i] - peak;
        const float p = gap < kLowestGap ? 0.0f : exponential(gap);
        lane[i % kLanes] = lane[i % kLanes] + p;
        s[i] = value_scale == nullptr ? p : p * value_scale[i];
    }
    return tree(lane);
}

void values(const float* w, int64_t w_stride, const int64_t* counts, int64_t rows, const CacheRows& values, int64_t width,
            float* o) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t d = 0; d < width; ++d) {
            float sum = 0.0f;
            for (int64_t i = 0; i < counts[r]; ++i) {
                const float product = w[r * w_stride + i] * at(values, i, d);
                sum = sum + product;
            }
            o[r * width + d] = o[r * width + d] + sum;
        }
}

}  // namespace

namespace scalar {
const AttentionKernels attention = {widen_codes, widen_rows, scores, peak, weights, values};
}
}  // namespace bitnet
