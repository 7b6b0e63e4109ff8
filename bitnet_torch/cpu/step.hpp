// The entries of the library that a decoder step is made of, as Python calls them.
#pragma once
#include "ternary_linear.hpp"

BITNET_EXPORT int bitnet_cpu_rms_norm(const void* x, int dtype, const void* weight, int weight_dtype, float eps, int64_t M,
                                      int64_t K, void* y, int threads);
BITNET_EXPORT int bitnet_cpu_rms_norm_quantize(const void* x, int dtype, const void* weight, int weight_dtype, float eps,
                                               int64_t M, int64_t K, int8_t* x_q, float* x_scale, int threads);
BITNET_EXPORT int bitnet_cpu_glu_norm_quantize(const void* g, const void* u, int dtype, int activation, const void* weight,
                                               int weight_dtype, float eps, int64_t M, int64_t K, int8_t* x_q,
                                               float* x_scale, int threads);
BITNET_EXPORT int bitnet_cpu_multi_ternary_linear(const int8_t* x_q, const float* x_scale,
                                                  const bitnet::LinearArguments* matrices, int64_t count, int threads);
BITNET_EXPORT int bitnet_cpu_bit_linear(const void* x, int dtype, const uint8_t* panels, int64_t panels_bytes,
                                        const float* w_scale, int64_t w_scale_count, const void* bias, int bias_dtype,
                                        void* y, int64_t M, int64_t N, int64_t K, int threads);
BITNET_EXPORT int bitnet_cpu_rope_kv_write(const void* q, const void* k, const void* v, int dtype, const float* cos,
                                           const float* sin, void* keys, void* values, float* key_scale,
                                           float* value_scale, const int64_t* start, const int64_t* strides, int64_t B,
                                           int64_t heads, int64_t kv_heads, int64_t T, int64_t D, int64_t L, void* y,
                                           int threads);
BITNET_EXPORT int bitnet_cpu_attention(const void* q, int dtype, const void* keys, const void* values,
                                       const float* key_scale, const float* value_scale, const int64_t* start,
                                       const int64_t* first, const int64_t* strides, float factor, int64_t B, int64_t heads,
                                       int64_t kv_heads, int64_t T, int64_t D, int64_t L, void* out, int threads);
