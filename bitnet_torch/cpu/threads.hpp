// Fork-join over index ranges on a persistent pool, and the floating-point state the kernels need.
#pragma once
#include "common.hpp"

namespace bitnet {

// Splits [0, count) into chunks of `grain` and calls body(context, begin, end) for each of them, on the caller and on
// up to threads - 1 workers. The chunks are handed out dynamically, so bodies must not care who runs them.
// Callable from any number of threads at once: one of them gets the workers, the others run alone.
void parallel_for_raw(int64_t count, int64_t grain, int threads,
                      void (*body)(const void* context, int64_t begin, int64_t end), const void* context);

template <class Body>
void parallel_for(int64_t count, int64_t grain, int threads, const Body& body) {
    parallel_for_raw(
        count, grain, threads,
        [](const void* context, int64_t begin, int64_t end) {
            (*static_cast<const Body*>(context))(begin, end);
        },
        &body);
}

// Fewer threads when the work is small. `work` is in multiply-accumulates or bytes touched, about 100 per nanosecond:
// waking a worker is worth it from about 5 microseconds each.
inline int useful_threads(int threads, int64_t work) {
    const int64_t most = 1 + work / (int64_t{1} << 19);
    return static_cast<int>(most < threads ? most : threads);
}
// A few chunks for each thread, so that one slow core does not hold up the others; a multiple of `unit`.
inline int64_t even_grain(int64_t count, int threads, int64_t unit) {
    if (threads <= 1) return count > 0 ? count : 1;
    const int64_t pieces = int64_t{threads} * 4;
    const int64_t grain = (count + pieces - 1) / pieces;
    return (grain + unit - 1) / unit * unit;
}

// Round to nearest, keep subnormals, for the length of a scope. `torch.set_flush_denormal` and other libraries change
// this per thread: without it a result could depend on which thread computed it.
class FloatState {
  public:
    FloatState();
    ~FloatState();
    FloatState(const FloatState&) = delete;
    FloatState& operator=(const FloatState&) = delete;

  private:
    uint64_t saved_;
};

}  // namespace bitnet
