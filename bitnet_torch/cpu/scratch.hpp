// Working memory of one calling thread, kept between calls: an allocation for each small product would cost more
// than the product. The kernels take the tokens in blocks, so the size is bounded whatever the number of tokens.
#pragma once
#include <cstdlib>

#include "common.hpp"

namespace bitnet {

constexpr int64_t kScratchBytes = int64_t{4} << 20;

// Tokens in a block whose rows of `row_bytes` fit the scratch. A multiple of the token block of the GEMM where it can be.
inline int64_t token_block(int64_t row_bytes) {
    const int64_t tokens = kScratchBytes / row_bytes;
    return tokens >= 128 ? tokens / 128 * 128 : tokens < 1 ? 1 : tokens;
}

class Scratch {
  public:
    Scratch() = default;
    ~Scratch() { std::free(memory_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    // At least `bytes` bytes, 64-byte aligned, with undefined contents; null when there is no memory.
    char* reserve(size_t bytes) {
        if (bytes > size_) {
            std::free(memory_);
            memory_ = std::malloc(bytes + 64);
            size_ = memory_ == nullptr ? 0 : bytes;
        }
        if (memory_ == nullptr) return nullptr;
        return static_cast<char*>(memory_) + (64 - reinterpret_cast<uintptr_t>(memory_) % 64) % 64;
    }

  private:
    void* memory_ = nullptr;
    size_t size_ = 0;
};

}  // namespace bitnet
