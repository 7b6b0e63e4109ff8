// x (M, K) -> x_q int8 (M, K), x_scale float32 (M).
#include "isa.hpp"
#include "threads.hpp"

using namespace bitnet;

BITNET_EXPORT int bitnet_cpu_quantize_activation(const void* x, int dtype, int64_t M, int64_t K, int8_t* x_q,
                                                 float* x_scale, int threads) {
    if (!valid_dtype(dtype) || !valid_matrix(M, K)) return kInvalidArgument;
    const Kernels& kernel = kernels();
    const FloatState state;
    // A value costs about as much as 16 multiply-accumulates.
    threads = useful_threads(clamp_threads(threads), M * K * 16);
    parallel_for(M, even_grain(M, threads, 1), threads, [&](int64_t begin, int64_t end) {
        for (int64_t m = begin; m < end; ++m) {
            int32_t sum;
            kernel.quantize_row(element(x, static_cast<DType>(dtype), m * K), static_cast<DType>(dtype), K,
                                x_q + m * K, K, x_scale + m, &sum);
        }
    });
    return kOk;
}
