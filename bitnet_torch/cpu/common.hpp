// What every kernel file shares: the C ABI's vocabulary (status codes, dtype codes, sizes) and its limits.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define BITNET_EXPORT extern "C" __declspec(dllexport)
#else
#define BITNET_EXPORT extern "C" __attribute__((visibility("default")))
#endif

#if defined(_MSC_VER)
#define BITNET_INLINE __forceinline
#define BITNET_NOINLINE __declspec(noinline)
#define BITNET_RESTRICT __restrict
#else
#define BITNET_INLINE inline __attribute__((always_inline))
#define BITNET_NOINLINE __attribute__((noinline))
#define BITNET_RESTRICT __restrict__
#endif

namespace bitnet {

// The launchers in Python translate these; `_library.py` holds the same numbers.
enum Status : int {
    kOk = 0,
    kInvalidArgument = 1,
    kOutOfMemory = 2,
    kBadValue = 3,  // the data, not the call, is wrong; the launcher looks for the value and names it
};

enum DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// |sum of K products| <= 128 * 131072 = 2^24, so an int32 sum times four (see the AVX2 kernel) still fits and
// its conversion to float32 is exact.
constexpr int64_t kMaxInFeatures = 131072;
// A fixed-point weight sum has terms below 2^30: up to 2^33 of them fit an int64.
constexpr int64_t kMaxWeightCount = int64_t{1} << 33;
constexpr int kMaxThreads = 256;

inline bool valid_dtype(int code) { return code >= kFloat32 && code <= kFloat16; }
inline size_t dtype_size(DType dtype) { return dtype == kFloat32 ? 4 : 2; }

// Both sizes are non-negative and rows * columns elements of up to 8 bytes can be addressed.
inline bool valid_matrix(int64_t rows, int64_t columns) {
    return rows >= 0 && columns >= 0 && (rows == 0 || columns <= INT64_MAX / 8 / rows);
}
inline int clamp_threads(int threads) {
    return threads < 1 ? 1 : threads > kMaxThreads ? kMaxThreads : threads;
}
inline const void* element(const void* base, DType dtype, int64_t index) {
    return static_cast<const char*>(base) + static_cast<size_t>(index) * dtype_size(dtype);
}

}  // namespace bitnet
