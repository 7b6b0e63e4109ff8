// What an int8 head and the choice from its scores need, portable: the loops that AVX2 is tested against.
#include "isa.hpp"
#include "number.hpp"

namespace bitnet {
namespace scalar {

void head_codes(const void* w, DType dtype, int64_t count, float scale, int8_t* h) {
    for (int64_t i = 0; i < count; ++i) {
        const int32_t code = round_to_int(load_float(w, dtype, i) / scale);
        h[i] = static_cast<int8_t>(code > 127 ? 127 : code < -127 ? -127 : code);
    }
}

void int8_rows(const Int8Job& job, int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n)
        for (int64_t m = 0; m < job.tokens; ++m) {
            const int8_t *x = job.x + m * job.x_stride, *h = job.h + n * job.K;
            int32_t acc = 0;
            for (int64_t k = 0; k < job.K; ++k) acc += x[k] * h[k];
            store_output(job.y, job.y_dtype, m * job.N + n, acc, job.x_scale[m], job.h_scale[n], nullptr, kFloat32, n);
        }
}

HeadSums head_sums(const void* w, DType dtype, const int8_t* h, float scale, int64_t count) {
    double lane[3][8] = {}, sum[3];
    for (int64_t k = 0; k < count; ++k) {
        const double value = load_float(w, dtype, k), real = static_cast<double>(h[k]) * scale, off = value - real;
        lane[0][k % 8] += value * value;
        lane[1][k % 8] += real * real;
        lane[2][k % 8] += off * off;
    }
    for (int i = 0; i < 3; ++i) {
        const double* l = lane[i];
        const double even = (l[0] + l[4]) + (l[2] + l[6]), odd = (l[1] + l[5]) + (l[3] + l[7]);
        sum[i] = even + odd;
    }
    return {sum[0], sum[1], sum[2]};
}

int64_t first_above(const float* x, int64_t from, int64_t count, float limit) {
    while (from < count && x[from] <= limit) ++from;  // false for NaN
    return from;
}

}  // namespace scalar
}  // namespace bitnet
