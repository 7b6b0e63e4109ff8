// What the x86 widths of ternary_dot.hpp share: their epilogue.
#pragma once
#include "ternary_avx2.hpp"
#include "ternary_dot.hpp"

namespace bitnet {
namespace {

// Sums of one token, 8 for each of the panels.
BITNET_NOINLINE void store_sums(const TernaryJob& job, int64_t m, const int64_t* panel, int panels, const int32_t* sums) {
    const V x_sum = _mm256_set1_epi32(job.x_sum[m]);
    for (int i = 0; i < panels; ++i)
        store_panel(job, m, panel[i], _mm256_sub_epi32(load(sums + i * kPanelRows), x_sum));
}

}  // namespace
}  // namespace bitnet
