// Ternary product, portable: the plain loops that the other instruction sets are tested against.
#include "isa.hpp"
#include "number.hpp"
#include "panel8.hpp"

namespace bitnet {
namespace {

// sum over k of x[k] * (t + 1) for the 8 rows of a panel. |sum| <= 2 * 128 * 131072 fits an int32.
void dot_panel(const uint8_t* panel, const int8_t* x, int64_t K_padded, int32_t sum[kPanelRows]) {
    for (int r = 0; r < kPanelRows; ++r) sum[r] = 0;
    for (int64_t k = 0; k < K_padded; k += kStepK, panel += kStepBytes)
        for (int i = 0; i < kStepBytes; ++i)
            for (int p = 0; p < 4; ++p) sum[i / 4] += x[k + 4 * p + i % 4] * (panel[i] >> (2 * p) & 3);
}

}  // namespace

namespace scalar {

void ternary_panels(const TernaryJob& job, int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel)
        for (int64_t m = 0; m < job.tokens; ++m) {
            int32_t sum[kPanelRows];
            dot_panel(job.panels + panel * job.K_padded * 2, job.x + m * job.x_stride, job.K_padded, sum);
            for (int64_t n = panel * kPanelRows; n < job.N && n < (panel + 1) * kPanelRows; ++n)
                store_output(job.y, job.y_dtype, m * job.N + n, sum[n % kPanelRows] - job.x_sum[m], job.x_scale[m],
                             job.w_scale[n * job.w_scale_step], job.bias, job.bias_dtype, n);
        }
}

}  // namespace scalar
}  // namespace bitnet
