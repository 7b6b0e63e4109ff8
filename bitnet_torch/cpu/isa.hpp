// The table of instruction sets. A row is a name, a run-time test and one function pointer for each kernel that
// gains from it; a new instruction set adds files named *_<isa>.cpp and one row in isa.cpp, and may borrow entries.
//
// Rule for *_<isa>.cpp files: no standard-library templates and no inline functions outside an unnamed namespace
// (number.hpp says why).
#pragma once
#include "attention.hpp"

namespace bitnet {

// A ternary product over some rows of x. Strides and counts are in elements.
struct TernaryJob {
    const int8_t* x;        // tokens x K_padded, rows x_stride apart, zero past K
    int64_t x_stride;
    const int32_t* x_sum;   // sum of each row: takes off the +1 of the codes
    const float* x_scale;   // one for each token
    const uint8_t* panels;  // panel8
    const float* w_scale;   // w_scale[n * w_scale_step]: step 0 is one scale for the matrix
    int64_t w_scale_step;
    const void* bias;       // null, or N values of bias_dtype
    DType bias_dtype;
    void* y;                // tokens x N, without padding
    DType y_dtype;
    int64_t tokens, N, K_padded;
    int64_t ahead;          // bytes from use to prefetch, see Ahead
};

// A float product over some rows of x; strides and counts are in elements.
struct FloatJob {
    const float* x;    // tokens rows, x_stride apart, +0 from K to x_stride: the next multiple of 8
    int64_t x_stride;
    const void* w;     // N x K of w_dtype
    DType w_dtype;
    const void* bias;  // null, or N values of bias_dtype
    DType bias_dtype;
    void* y;           // tokens x N, without padding
    DType y_dtype;
    int64_t tokens, N, K;
};

// An int8 product over some rows of h; strides and counts are in elements.
struct Int8Job {
    const int8_t* x;       // tokens rows, x_stride apart: codes, zero from K to the next multiple of 32; then |codes|
    int64_t x_stride;
    const float* x_scale;  // one for each token
    const int8_t* h;       // N x K
    const float* h_scale;  // N
    void* y;               // tokens x N, without padding
    DType y_dtype;
    int64_t tokens, N, K;
    int64_t ahead;         // bytes from use to prefetch, see Ahead
};

// One token by some neurons of a matrix in one of the layouts of neuron_rows.hpp.
struct NeuronJob {
    const uint8_t* codes;
    int64_t chunks;       // of a neuron
    const int32_t* list;  // neurons, ascending
    int64_t count;        // of the list
    const int8_t* x;      // dots: chunks * 256 elements of the input; adds: one for each neuron
    int32_t* sums;        // of products with t + 1. Dots: one for each neuron; adds: chunks * 256
};

// Sums of squares over a row of the head, in float64: of the weights, of what the codes stand for, of the difference. Lane
// j of eight adds up elements j, j + 8, ... in that order; then ((l0 + l4) + (l2 + l6)) + ((l1 + l5) + (l3 + l7)).
struct HeadSums {
    double weight, code, off;
};

enum Activation : int { kRelu2 = 0, kSilu = 1 };
inline bool valid_activation(int code) { return code == kRelu2 || code == kSilu; }

struct Kernels {
    const char* name;
    // One token: writes K codes, zeros up to K_padded, the scale and the sum of the codes.
    void (*quantize_row)(const void* x, DType dtype, int64_t K, int8_t* q, int64_t K_padded, float* scale,
                         int32_t* sum);
    int32_t (*row_sum)(const int8_t* x, int64_t count);
    // The largest |w| as its bits: an integer maximum keeps NaN, which sorts above infinity.
    uint32_t (*weight_max)(const void* w, DType dtype, int64_t count);
    int64_t (*weight_sum)(const void* w, DType dtype, int64_t count, float power);  // of rne(|w| * power)
    void (*weight_codes)(const void* w, DType dtype, int64_t count, float half_scale, int8_t* t);
    void (*ternary_panels)(const TernaryJob& job, int64_t first, int64_t last);  // all tokens, panels [first, last)
    void (*widen_row)(const void* x, DType dtype, int64_t count, float* y);
    void (*narrow_row)(const float* x, int64_t count, DType dtype, void* y);
    // RMSNorm of one row; y is float32 but holds values of the dtype `rounded`, and may be x.
    void (*norm_row)(const void* x, DType dtype, const float* weight, int64_t K, float eps, DType rounded, float* y);
    // act(g) * u; h is float32 but holds values of `dtype`.
    void (*glu_row)(const void* g, const void* u, DType dtype, int64_t count, Activation activation, float* h);
    void (*float_rows)(const FloatJob& job, int64_t first, int64_t last);  // all tokens, weight rows [first, last)
    float (*float_dot)(const float* x, const void* w, DType dtype, int64_t K);  // one output of it, unrounded
    void (*head_codes)(const void* w, DType dtype, int64_t count, float scale, int8_t* h);  // rne(w / scale)
    void (*int8_rows)(const Int8Job& job, int64_t first, int64_t last);  // all tokens, rows [first, last)
    HeadSums (*head_sums)(const void* w, DType dtype, const int8_t* h, float scale, int64_t count);
    // The first i >= from with x[i] > limit or x[i] NaN, else count.
    int64_t (*first_above)(const float* x, int64_t from, int64_t count, float limit);
    // Turns the pairs (j, j + half) of one head.
    void (*rope_row)(const void* x, DType dtype, const float* cos, const float* sin, int64_t half, void* y);
    // The tiles of float_tile.hpp: c (+)= a * b, and strips b of codes as floats.
    void (*product_tile)(const float* a, const float* b, int64_t depth, bool add, float* c);
    void (*ternary_strip)(const uint8_t* packed, int64_t stride, int64_t rows, float* b);
    void (*int8_strip)(const int8_t* x, int64_t stride, const float* scale, int64_t rows, float* b);
    const AttentionKernels* attention;
    void (*neuron_dots)(const NeuronJob& job, int64_t first, int64_t last);  // listed neurons [first, last)
    void (*neuron_adds)(const NeuronJob& job, int64_t first, int64_t last);  // all listed ones, chunks [first, last)
    // Indices of the gates that are not <= 0, from `first` on, and of codes other than 0; neuron_rows.hpp.
    int64_t (*live_gates)(const float* g, int64_t first, int64_t count, int32_t* list);
    int64_t (*live_codes)(const int8_t* x, int64_t count, int32_t* list);
    // Outputs of panels [first, last) of one token from its sums.
    void (*ternary_finish)(const TernaryJob& job, const int32_t* sums, int64_t first, int64_t last);
};

// How far ahead of its use a stream of weights is best asked for, which depends on the processor and nothing else. Out of
// cache, four streams, huge pages, of the rate of reading: Zen 4 0.95 at 384 bytes and 0.71 from 1024 on (the head 0.97 at
// 256 and 0.76 at 2048); Zen 5 the other way round, a fifth more from 2048 on. Elsewhere as on Zen 4.
struct Ahead {
    int64_t codes, head;
};
Ahead prefetch_ahead();

const Kernels& kernels();  // the chosen row: the last supported one, or the forced one

#define BITNET_DECLARE_KERNELS                                                                        \
    void quantize_row(const void*, DType, int64_t, int8_t*, int64_t, float*, int32_t*);               \
    int32_t row_sum(const int8_t*, int64_t);                                                          \
    uint32_t weight_max(const void*, DType, int64_t);                                                 \
    int64_t weight_sum(const void*, DType, int64_t, float);                                           \
    void weight_codes(const void*, DType, int64_t, float, int8_t*);                                   \
    void ternary_panels(const TernaryJob&, int64_t, int64_t);                                         \
    void widen_row(const void*, DType, int64_t, float*);                                              \
    void narrow_row(const float*, int64_t, DType, void*);                                             \
    void norm_row(const void*, DType, const float*, int64_t, float, DType, float*);                   \
    void glu_row(const void*, const void*, DType, int64_t, Activation, float*);                       \
    void float_rows(const FloatJob&, int64_t, int64_t);                                               \
    float float_dot(const float*, const void*, DType, int64_t);                                       \
    void head_codes(const void*, DType, int64_t, float, int8_t*);                                     \
    void int8_rows(const Int8Job&, int64_t, int64_t);                                                 \
    HeadSums head_sums(const void*, DType, const int8_t*, float, int64_t);                            \
    int64_t first_above(const float*, int64_t, int64_t, float);                                       \
    void rope_row(const void*, DType, const float*, const float*, int64_t, void*);                    \
    void product_tile(const float*, const float*, int64_t, bool, float*);                             \
    void ternary_strip(const uint8_t*, int64_t, int64_t, float*);                                     \
    void int8_strip(const int8_t*, int64_t, const float*, int64_t, float*);                              \
    void neuron_dots(const NeuronJob&, int64_t, int64_t);                                             \
    void neuron_adds(const NeuronJob&, int64_t, int64_t);                                             \
    int64_t live_gates(const float*, int64_t, int64_t, int32_t*);                                     \
    int64_t live_codes(const int8_t*, int64_t, int32_t*);                                             \
    void ternary_finish(const TernaryJob&, const int32_t*, int64_t, int64_t);                         \
    extern const AttentionKernels attention;

namespace scalar {
BITNET_DECLARE_KERNELS
}
namespace avx2 {
BITNET_DECLARE_KERNELS
}
#undef BITNET_DECLARE_KERNELS
// These borrow everything else: the first two from avx2, the last from scalar.
namespace avxvnni {
void ternary_panels(const TernaryJob&, int64_t, int64_t);
void int8_rows(const Int8Job&, int64_t, int64_t);
}
namespace avx512vnni {
void ternary_panels(const TernaryJob&, int64_t, int64_t);
void int8_rows(const Int8Job&, int64_t, int64_t);
void neuron_dots(const NeuronJob&, int64_t, int64_t);
void neuron_adds(const NeuronJob&, int64_t, int64_t);
int64_t live_gates(const float*, int64_t, int64_t, int32_t*);
int64_t live_codes(const int8_t*, int64_t, int32_t*);
}
namespace neondot {
void ternary_panels(const TernaryJob&, int64_t, int64_t);
}

}  // namespace bitnet
