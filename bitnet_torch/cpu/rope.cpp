// x (..., D), cos and sin (..., D/2) over the same leading sizes -> y (..., D), contiguous. The leading dimensions of x
// and of the tables have strides of their own, so a table that is the same for all heads is not copied for each.
#include "isa.hpp"
#include "threads.hpp"

using namespace bitnet;

namespace {

struct Offsets {
    int64_t x, table;
};
Offsets offsets(int64_t row, int rank, const int64_t* sizes, const int64_t* x_strides, const int64_t* table_strides) {
    Offsets o{0, 0};
    for (int d = rank - 1; d >= 0; --d) {
        const int64_t i = row % sizes[d];
        row /= sizes[d];
        o.x += i * x_strides[d];
        o.table += i * table_strides[d];
    }
    return o;
}

}  // namespace

// Strides are in elements; the last dimension of x and of the tables is dense.
BITNET_EXPORT int bitnet_cpu_rope(const void* x, int dtype, const float* cos, const float* sin, int rank,
                                  const int64_t* sizes, const int64_t* x_strides, const int64_t* table_strides,
                                  int64_t D, void* y, int threads) {
    if (!valid_dtype(dtype) || rank < 0 || D < 0 || D % 2 != 0) return kInvalidArgument;
    int64_t rows = 1;
    for (int d = 0; d < rank; ++d) {
        if (!valid_matrix(rows, sizes[d])) return kInvalidArgument;
        rows *= sizes[d];
    }
    if (!valid_matrix(rows, D)) return kInvalidArgument;
    const Kernels& kernel = kernels();
    const FloatState state;
    const DType d = static_cast<DType>(dtype);
    threads = useful_threads(clamp_threads(threads), rows * D * 16);
    parallel_for(rows, even_grain(rows, threads, 1), threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const Offsets from = offsets(row, rank, sizes, x_strides, table_strides);
            void* out = static_cast<char*>(y) + static_cast<size_t>(row * D) * dtype_size(d);
            kernel.rope_row(element(x, d, from.x), d, cos + from.table, sin + from.table, D / 2, out);
        }
    });
    return kOk;
}
