// q, k, v (B, heads or kv_heads, T, D) -> y (B, heads, T, D), and slots start.. of the cache. Contract:
// bitnet_torch/ops/rope_kv_write.py. One task is one token of one sequence: all of its heads share a row of the tables.
#include <cstring>

#include "row_memory.hpp"

using namespace bitnet;

namespace {

struct Strides {
    int64_t batch, head, token;
};
// The order in which the launcher lays them out.
enum Operand { kQ, kK, kV, kTables, kKeys, kValues, kKeyScale, kValueScale, kOperands };

struct Cache {
    void* data;
    float* scale;  // null for a float cache, which has the dtype of x
    Strides strides, scale_strides;
};
int64_t offset(const Strides& s, int64_t b, int64_t head, int64_t t) {
    return b * s.batch + head * s.head + t * s.token;
}

// Copies or quantises one head of one token to its slot.
void put(const Kernels& kernel, const void* x, DType dtype, int64_t D, const Cache& cache, int64_t b, int64_t head,
         int64_t slot) {
    const int64_t at = offset(cache.strides, b, head, slot);
    if (cache.scale == nullptr) {
        std::memcpy(static_cast<char*>(cache.data) + static_cast<size_t>(at) * dtype_size(dtype), x,
                    static_cast<size_t>(D) * dtype_size(dtype));
        return;
    }
    int32_t sum;
    kernel.quantize_row(x, dtype, D, static_cast<int8_t*>(cache.data) + at, D,
                        cache.scale + offset(cache.scale_strides, b, head, slot), &sum);
}

}  // namespace

// `strides` are those of batch, head and token of each Operand, in elements; the last dimensions are dense. Gives
// kBadValue, and writes nothing, if the slots do not lie in [0, L).
BITNET_EXPORT int bitnet_cpu_rope_kv_write(const void* q, const void* k, const void* v, int dtype, const float* cos,
                                           const float* sin, void* keys, void* values, float* key_scale,
                                           float* value_scale, const int64_t* start, const int64_t* strides, int64_t B,
                                           int64_t heads, int64_t kv_heads, int64_t T, int64_t D, int64_t L, void* y,
                                           int threads) {
    if (!valid_dtype(dtype) || heads < 0 || kv_heads < 0 || D < 0 || D % 2 != 0 || D > kMaxInFeatures ||
        (key_scale == nullptr) != (value_scale == nullptr) || !valid_matrix(B, T))
        return kInvalidArgument;
    if (*start < 0 || *start > L - T) return kBadValue;
    Strides s[kOperands];
    std::memcpy(s, strides, sizeof s);
    const Kernels& kernel = kernels();
    const FloatState state;
    const DType d = static_cast<DType>(dtype);
    const Cache key_cache{keys, key_scale, s[kKeys], s[kKeyScale]};
    const Cache value_cache{values, value_scale, s[kValues], s[kValueScale]};
    // As in rope and quantize_activation: a value costs about 16 multiply-accumulates.
    return for_each_row(B * T, D, (heads + 2 * kv_heads) * 16, threads, [&](int64_t row, float* turned) {
        const int64_t b = row / T, t = row % T, slot = *start + t, table = offset(s[kTables], b, 0, t);
        for (int64_t h = 0; h < heads; ++h) {
            void* out = static_cast<char*>(y) + static_cast<size_t>(((b * heads + h) * T + t) * D) * dtype_size(d);
            kernel.rope_row(element(q, d, offset(s[kQ], b, h, t)), d, cos + table, sin + table, D / 2, out);
        }
        for (int64_t h = 0; h < kv_heads; ++h) {
            kernel.rope_row(element(k, d, offset(s[kK], b, h, t)), d, cos + table, sin + table, D / 2, turned);
            put(kernel, turned, d, D, key_cache, b, h, slot);
            put(kernel, element(v, d, offset(s[kV], b, h, t)), d, D, value_cache, b, h, slot);
        }
    });
}
