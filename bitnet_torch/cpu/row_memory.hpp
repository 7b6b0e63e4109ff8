// What the row-wise ops share: rows over threads, a float32 row for each thread, and a weight widened once a call.
#pragma once
#include <atomic>

#include "isa.hpp"
#include "scratch.hpp"
#include "threads.hpp"

namespace bitnet {

// K floats of the calling thread, kept between calls; null when there is no memory. One element more than asked for,
// because a row of none is not an error.
template <class Use>
float* row_memory(int64_t K) {
    thread_local Scratch scratch;
    return reinterpret_cast<float*>(scratch.reserve(static_cast<size_t>(K + 1) * sizeof(float)));
}

// Sets `gain` to the weight as float32: itself, or a copy in memory of the calling thread. False when there is none.
inline bool float_weight(const void* weight, int dtype, int64_t K, const float*& gain) {
    gain = static_cast<const float*>(weight);
    if (dtype == kFloat32) return true;
    struct Weight;
    float* copy = row_memory<Weight>(K);
    if (copy == nullptr) return false;
    kernels().widen_row(weight, static_cast<DType>(dtype), K, copy);
    gain = copy;
    return true;
}

// Calls body(m, row) for each of M rows; `row` is K floats of scratch. `work` as in useful_threads, for one element.
template <class Body>
int for_each_row(int64_t M, int64_t K, int64_t work, int threads, const Body& body) {
    std::atomic<bool> starved{false};
    threads = useful_threads(clamp_threads(threads), M * K * work);
    parallel_for(M, even_grain(M, threads, 1), threads, [&](int64_t begin, int64_t end) {
        struct Row;
        float* row = row_memory<Row>(K);
        if (row == nullptr) starved = true;
        for (int64_t m = begin; row != nullptr && m < end; ++m) body(m, row);
    });
    return starved ? kOutOfMemory : kOk;
}

inline bool valid_norm(int dtype, int weight_dtype, float eps, int64_t M, int64_t K) {
    return valid_dtype(dtype) && valid_dtype(weight_dtype) && valid_matrix(M, K) && K <= kMaxInFeatures && eps > 0.0f;
}
// What a normalised value costs, in multiply-accumulates; a gate and a code cost about half as much each.
constexpr int64_t kNormWork = 32;

}  // namespace bitnet
