// The scale of a weight matrix or of its rows, for the ops that ternarise. Contract: ops/quantize_weight.py.
#pragma once
#include <atomic>

#include "isa.hpp"

namespace bitnet {

struct FixedPoint {
    int k;        // a term is rne(|w| * 2^k) <= 2^30
    float power;  // 2^k
};

// The largest magnitude and the fixed-point sum of a matrix in one reading: the binary point, which the largest
// magnitude decides, is guessed from the first weights, and a wrong guess is noticed.
class Magnitudes {
  public:
    Magnitudes(const void* w, DType dtype, int64_t count);
    // Adds weights, from any thread. Best in blocks that stay in the first cache: they are read twice.
    void add(const void* w, DType dtype, int64_t count);
    bool finite() const;
    // Once all are added: the scale, which a wrong guess makes from a second reading.
    float scale(const void* w, DType dtype, int64_t count, int threads) const;

  private:
    FixedPoint point_;
    uint32_t limit_;  // bits of the magnitude from which on the guess is wrong
    std::atomic<uint32_t> max_{0};
    std::atomic<int64_t> sum_{0};
};
constexpr int64_t kMagnitudesBlock = 2048;

// From all `count` weights, on threads. kBadValue: a weight is not finite.
int matrix_scale(const void* w, DType dtype, int64_t count, float* w_scale, int threads);
// One scale for each of N rows, on threads.
int row_scales(const void* w, DType dtype, int64_t N, int64_t K, float* w_scale, int threads);
// Of one row; false if a weight is not finite.
bool row_scale(const void* row, DType dtype, int64_t K, float* w_scale);
// What a weight costs, as in useful_threads.
constexpr int64_t kWeightWork = 32;

}  // namespace bitnet
