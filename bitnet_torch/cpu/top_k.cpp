// logits (M, V) -> values and ids (M, k). Contract: bitnet_torch/ops/top_k.py.
//
// One pass: a heap of the k best so far lies in the output, worst on top, and a vector scan looks for the next value
// above the worst. Values come in the order of their ids, so an equal one never enters.
#include "top_k.hpp"

#include <utility>

#include "number.hpp"
#include "threads.hpp"

namespace bitnet {
namespace {

// Integers in the order of the contract: NaN above infinity, the two zeros equal.
int32_t rank(float value) {
    const uint32_t bits = bits_of(value), size = bits & kAbsMask;
    if (size > kInfinityBits) return INT32_MAX;
    return bits == size ? static_cast<int32_t>(size) : -static_cast<int32_t>(size);
}

struct Heap {
    float* values;
    int64_t* ids;
    int64_t size;

    bool worse(int64_t i, int64_t j) const {
        const int32_t a = rank(values[i]), b = rank(values[j]);
        return a != b ? a < b : ids[i] > ids[j];
    }
    void swap(int64_t i, int64_t j) {
        std::swap(values[i], values[j]);
        std::swap(ids[i], ids[j]);
    }
    void sift_down(int64_t i) {
        for (int64_t child; (child = 2 * i + 1) < size; i = child) {
            if (child + 1 < size && worse(child + 1, child)) ++child;
            if (!worse(child, i)) return;
            swap(i, child);
        }
    }
    void build() {
        for (int64_t i = size / 2; i-- > 0;) sift_down(i);
    }
    void replace_worst(float value, int64_t id) {
        values[0] = value;
        ids[0] = id;
        sift_down(0);
    }
    // Leaves the values best first.
    void sort() {
        while (size > 1) {
            swap(0, --size);
            sift_down(0);
        }
    }
};

}  // namespace

void select_top(const Kernels& kernel, const float* x, const int64_t* names, int64_t count, int64_t k, float* values,
                int64_t* ids) {
    if (k == 0) return;
    Heap heap{values, ids, k};
    for (int64_t i = 0; i < k; ++i) {
        values[i] = x[i];
        ids[i] = names == nullptr ? i : names[i];
    }
    heap.build();
    for (int64_t i = k; i < count; ++i) {
        if (rank(values[0]) == INT32_MAX) break;  // k NaNs: nothing is above them
        i = kernel.first_above(x, i, count, values[0]);
        if (i < count) heap.replace_worst(x[i], names == nullptr ? i : names[i]);
    }
    heap.sort();
}

}  // namespace bitnet

BITNET_EXPORT int bitnet_cpu_top_k(const float* x, int64_t M, int64_t V, int64_t k, float* values, int64_t* ids,
                                   int threads) {
    using namespace bitnet;
    if (!valid_matrix(M, V) || k < 0 || k > V) return kInvalidArgument;
    const Kernels& kernel = kernels();
    threads = useful_threads(clamp_threads(threads), M * V * 4);
    parallel_for(M, even_grain(M, threads, 1), threads, [&](int64_t begin, int64_t end) {
        for (int64_t m = begin; m < end; ++m)
            select_top(kernel, x + m * V, nullptr, V, k, values + m * k, ids + m * k);
    });
    return kOk;
}
