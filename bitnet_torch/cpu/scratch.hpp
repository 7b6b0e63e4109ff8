// Working memory of one calling thread, kept between calls: an allocation for each small product would cost more
// than the product. The kernels take the tokens in blocks, so the size is bounded whatever the number of tokens.
//
// The host program may hand the memory out, to count it and to limit it (workspace.py does); without one the C library
// does. It is asked only when a buffer grows, in the thread whose buffer that is. Nothing is ever given back to it from
// here: a thread may end after the host has, so what is no longer used is put on a list, which the host reads.
#pragma once
#include <atomic>
#include <cstdlib>
#include <new>

#include "common.hpp"

namespace bitnet {

constexpr int64_t kScratchBytes = int64_t{4} << 20;

// Tokens in a block whose rows of `row_bytes` fit the scratch. A multiple of the token block of the GEMM where it can be.
inline int64_t token_block(int64_t row_bytes) {
    const int64_t tokens = kScratchBytes / row_bytes;
    return tokens >= 128 ? tokens / 128 * 128 : tokens < 1 ? 1 : tokens;
}

// Returns at least `bytes` bytes, or null when there are none.
using TakeMemory = void* (*)(int64_t bytes);
inline std::atomic<TakeMemory> take_memory{nullptr};

// A piece of the host's memory; `next` is used once it is on the list.
struct Loan {
    void* memory;
    Loan* next;
};
inline std::atomic<Loan*> ended_loans{nullptr};

inline void end_loan(Loan* loan) {
    loan->next = ended_loans.load();
    while (!ended_loans.compare_exchange_weak(loan->next, loan)) {
    }
}

class Scratch {
  public:
    Scratch() = default;
    ~Scratch() { drop(); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    // At least `bytes` bytes, 64-byte aligned, with undefined contents; null when there is no memory.
    char* reserve(size_t bytes) {
        if (bytes > size_) {
            drop();
            memory_ = take(bytes + 64);
            size_ = memory_ == nullptr ? 0 : bytes;
        }
        if (memory_ == nullptr) return nullptr;
        return static_cast<char*>(memory_) + (64 - reinterpret_cast<uintptr_t>(memory_) % 64) % 64;
    }

  private:
    void* take(size_t bytes) {
        const TakeMemory from_host = take_memory.load();
        if (from_host == nullptr) return std::malloc(bytes);
        loan_ = new (std::nothrow) Loan{nullptr, nullptr};
        if (loan_ == nullptr) return nullptr;
        loan_->memory = from_host(static_cast<int64_t>(bytes));
        if (loan_->memory != nullptr) return loan_->memory;
        delete loan_;
        return loan_ = nullptr;
    }

    void drop() {
        if (loan_ == nullptr)
            std::free(memory_);
        else
            end_loan(loan_);
        memory_ = nullptr;
        loan_ = nullptr;
        size_ = 0;
    }

    void* memory_ = nullptr;
    Loan* loan_ = nullptr;  // null: the memory is the C library's
    size_t size_ = 0;
};

}  // namespace bitnet
