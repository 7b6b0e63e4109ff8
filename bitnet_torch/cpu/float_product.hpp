// The products of the backward pass: C (rows x K) = sum over d of A[d][row] * B[d][k], in float32.
//
// B is made of codes, a strip of 16 columns and a block of 128 d at a time, and used for every row while it is in L1.
// A is copied once into panels of six rows. An element of C is a sum over the d of a block in ascending order, product
// and addition rounded each, and then a sum of these over the blocks, ascending too. Neither threads nor other rows and
// columns have a part in that, and no more than 128 + depth / 128 additions stand in a row.
//
// float_tile.hpp draws a, b and c.
#pragma once
#include <cstring>

#include "float_tile.hpp"
#include "isa.hpp"
#include "scratch.hpp"
#include "threads.hpp"

namespace bitnet {

// Rows that are summed up at a time: as many as fit the second cache as panels, enough to make a strip of B worth its
// while, and few enough for the stack of a thread (64 KiB of sums).
constexpr int64_t kPanelsBytes = int64_t{1} << 20, kLeastRows = 16 * kTileRows, kMostRows = 170 * kTileRows;

// The panels of `rows` rows of A, from row `first` of the whole on.
struct Panels {
    float* memory;
    int64_t first, rows, depth;

    int64_t padded_rows() const { return (rows + kTileRows - 1) / kTileRows * kTileRows; }
    int64_t block_depth(int64_t d0) const { return depth - d0 < kBlockDepth ? depth - d0 : kBlockDepth; }
    // Where the six rows from `row` on, a multiple of six, stand for the block from d0 on.
    float* tile(int64_t d0, int64_t row) const { return memory + d0 * padded_rows() + row * block_depth(d0); }
};

template <class FillB>
void multiply_strip(const Kernels& kernel, const Panels& a, const FillB& fill_b, float* sum) {
    alignas(64) float b[kBlockDepth * kStripK];
    for (int64_t d0 = 0; d0 < a.depth; d0 += kBlockDepth) {
        const int64_t count = a.block_depth(d0);
        fill_b(d0, count, b);
        for (int64_t row = 0; row < a.rows; row += kTileRows)
            kernel.product_tile(a.tile(d0, row), b, count, d0 != 0, sum + row * kStripK);
    }
}

inline void store_strip(const Kernels& kernel, const float* sum, int64_t rows, int64_t columns, int64_t K, DType dtype,
                        char* c) {
    const size_t stride = static_cast<size_t>(K) * dtype_size(dtype);
    for (int64_t row = 0; row < rows; ++row, sum += kStripK, c += stride) {
        if (dtype == kFloat32 && columns == kStripK)
            std::memcpy(c, sum, kStripK * sizeof(float));
        else
            kernel.narrow_row(sum, columns, dtype, c);
    }
}

// fill_a(panels, begin, end) fills, padding with zeros, what belongs to the rows [begin, end) of the panels if
// `by_row`, to these d if not. fill_b(k, columns, d0, count, b) writes a strip from column k on, zero past `columns`.
template <class FillA, class FillB>
int float_product(int64_t rows, int64_t depth, int64_t K, void* c, DType dtype, int threads, bool by_row,
                  const FillA& fill_a, const FillB& fill_b) {
    const Kernels& kernel = kernels();
    const int64_t fit = kPanelsBytes / static_cast<int64_t>(sizeof(float)) / depth / kTileRows * kTileRows;
    const int64_t most = fit < kLeastRows ? kLeastRows : fit < kMostRows ? fit : kMostRows;
    // Cut evenly: every cut makes all strips of B anew, which a last one of few rows would not repay.
    const int64_t cuts = (rows + most - 1) / most, even = (rows + cuts - 1) / cuts;
    const int64_t padded = (even + kTileRows - 1) / kTileRows * kTileRows;
    thread_local Scratch scratch;
    char* memory = scratch.reserve(static_cast<size_t>(padded * depth) * sizeof(float));
    if (memory == nullptr) return kOutOfMemory;
    for (int64_t first = 0; first < rows; first += padded) {
        const Panels a{reinterpret_cast<float*>(memory), first, rows - first < padded ? rows - first : padded, depth};
        const int64_t pieces = by_row ? a.padded_rows() : depth, strips = (K + kStripK - 1) / kStripK;
        const int fillers = useful_threads(threads, a.rows * depth * 16);
        parallel_for(pieces, even_grain(pieces, fillers, 1), fillers,
                     [&](int64_t begin, int64_t end) { fill_a(a, begin, end); });
        const int workers = useful_threads(threads, a.rows * depth * K);
        parallel_for(strips, even_grain(strips, workers, 1), workers, [&](int64_t begin, int64_t end) {
            alignas(64) float sum[kMostRows * kStripK];
            for (int64_t k = begin * kStripK; k < end * kStripK; k += kStripK) {
                const int64_t columns = K - k < kStripK ? K - k : kStripK;
                multiply_strip(kernel, a, [&](int64_t d0, int64_t count, float* b) { fill_b(k, columns, d0, count, b); },
                               sum);
                store_strip(kernel, sum, a.rows, columns, K, dtype,
                            static_cast<char*>(c) + static_cast<size_t>(first * K + k) * dtype_size(dtype));
            }
        });
    }
    return kOk;
}

}  // namespace bitnet
