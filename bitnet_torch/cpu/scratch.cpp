// The host's side of scratch.hpp.
#include "scratch.hpp"

// From now on `take` hands out working memory; buffers that threads have already stay what they are.
BITNET_EXPORT void bitnet_cpu_take_memory_from(bitnet::TakeMemory take) { bitnet::take_memory.store(take); }

// Writes the addresses of at most `room` pieces that no thread uses any more; returns how many. Each is told once.
BITNET_EXPORT int64_t bitnet_cpu_ended_loans(void** out, int64_t room) {
    using namespace bitnet;
    int64_t count = 0;
    Loan* loan = ended_loans.exchange(nullptr);
    while (loan != nullptr) {
        Loan* next = loan->next;
        if (count < room) {
            out[count++] = loan->memory;
            delete loan;
        } else {
            end_loan(loan);
        }
        loan = next;
    }
    return count;
}
