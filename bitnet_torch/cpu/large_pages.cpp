// Asks the system to back memory by large pages. Contract: large_pages.py.
#include "common.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

// Every large page that lies within [data, data + bytes). 0 if they were asked for; else nothing has changed.
BITNET_EXPORT int bitnet_cpu_ask_large_pages(void* data, int64_t bytes, int64_t page) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t size = static_cast<uintptr_t>(page), begin = reinterpret_cast<uintptr_t>(data);
    const uintptr_t first = (begin + size - 1) / size * size, end = (begin + static_cast<uintptr_t>(bytes)) / size * size;
    if (bytes < 0 || end <= first) return bitnet::kInvalidArgument;
    return madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE) == 0 ? bitnet::kOk : bitnet::kBadValue;
#else
    static_cast<void>(data), static_cast<void>(bytes), static_cast<void>(page);
    return bitnet::kBadValue;
#endif
}
