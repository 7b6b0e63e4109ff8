// g, u -> h, elementwise over `count` numbers. Contract: bitnet_torch/ops/glu.py.
#include "isa.hpp"
#include "threads.hpp"

using namespace bitnet;

namespace {

// Numbers at a time: a float32 block that stays in the first-level cache.
constexpr int64_t kBlock = 2048;

}  // namespace

BITNET_EXPORT int bitnet_cpu_glu(const void* g, const void* u, int dtype, int activation, int64_t count, void* h,
                                 int threads) {
    if (!valid_dtype(dtype) || !valid_activation(activation) || !valid_matrix(count, 1)) return kInvalidArgument;
    const Kernels& kernel = kernels();
    const FloatState state;
    const DType d = static_cast<DType>(dtype);
    threads = useful_threads(clamp_threads(threads), count * 16);
    parallel_for(count, even_grain(count, threads, kBlock), threads, [&](int64_t begin, int64_t end) {
        float block[kBlock];
        for (int64_t i = begin; i < end; i += kBlock) {
            const int64_t size = end - i < kBlock ? end - i : kBlock;
            void* out = static_cast<char*>(h) + static_cast<size_t>(i) * dtype_size(d);
            float* gated = d == kFloat32 ? static_cast<float*>(out) : block;
            kernel.glu_row(element(g, d, i), element(u, d, i), d, size, static_cast<Activation>(activation), gated);
            if (d != kFloat32) kernel.narrow_row(gated, size, d, out);
        }
    });
    return kOk;
}
