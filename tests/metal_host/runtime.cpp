// Runs one grid of a compute kernel on the CPU: a fiber per GPU thread, threadgroups one after another.
//
// A fiber runs until it waits: in a barrier, or in an operation of its simdgroup. Each simdgroup runs as far as it can
// before the next one starts, so that a missing barrier shows. The second schedule turns every order around, poisons
// threadgroup memory with another pattern and flushes subnormal floats; a right kernel computes the same in both.
#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>
#include <xmmintrin.h>

typedef unsigned int uint;
#include "include/runtime.h"

extern "C" {
mh_position* mh_current;
void mh_switch(void** save, void* next);
extern char __start_mh_shared[] __attribute__((weak)), __stop_mh_shared[] __attribute__((weak));
}
asm(R"(
.text
.globl mh_switch
.type mh_switch,@function
mh_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size mh_switch,.-mh_switch
)");

namespace {
enum State { RUNS, IN_SIMD, IN_BARRIER, DONE };
constexpr size_t kStack = 256 * 1024, kPage = 4096, kSlot = 64, kScratch = 384;
constexpr unsigned kFlushSubnormals = 0x8040;  // FTZ and DAZ of MXCSR
constexpr unsigned char kCanary = 0xCB;

struct Fiber {
    mh_position at;
    void* stack_pointer;
    State state;
    int operation, line;
    char slot[kSlot];
};
std::vector<Fiber> fibers;
std::vector<char*> stacks;
std::vector<char> slots, scratch;  // of each simdgroup
std::vector<uint> active;
Fiber* running;
void* scheduler;
void (*entry)(void* const*);
void* const* buffers;
char message[512];
void* fault_address;
sigjmp_buf failure;

[[noreturn]] void fail(const char* what) {
    char where[128] = "";
    if (running) {
        const mh_position& p = running->at;
        snprintf(where, sizeof where, " [threadgroup (%u,%u,%u) thread (%u,%u,%u)]", p.group[0], p.group[1],
                 p.group[2], p.in_group[0], p.in_group[1], p.in_group[2]);
    }
    snprintf(message, sizeof message, "%s%s", what, where);
    siglongjmp(failure, 1);
}
[[noreturn]] void fail_at(Fiber* fiber, const char* format, int a, int b) {
    char text[256];
    snprintf(text, sizeof text, format, a, b);
    running = fiber;
    fail(text);
}
void start() {
    entry(buffers);
    running->state = DONE;
    void* unused;
    mh_switch(&unused, scheduler);
    __builtin_trap();
}
void wait(State state, int operation, int line) {
    running->state = state;
    running->operation = operation;
    running->line = line;
    mh_switch(&running->stack_pointer, scheduler);
}
void resume(Fiber& fiber) {
    running = &fiber;
    mh_current = &fiber.at;
    mh_switch(&scheduler, fiber.stack_pointer);
}
void on_signal(int signal, siginfo_t* info, void* context) {
    (void)info;
    fault_address = (void*)((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP];
    if (signal == SIGSEGV || signal == SIGBUS) fail("out-of-bounds access of a buffer");
    fail(signal == SIGFPE ? "integer division fault" : "trap");
}

struct Signals {
    static constexpr int kNumbers[4] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    struct sigaction before[4];
    stack_t stack_before;
    Signals() {
        static stack_t own;
        if (!own.ss_sp) {
            own.ss_sp = malloc(65536);
            own.ss_size = 65536;
        }
        sigaltstack(&own, &stack_before);
        struct sigaction action = {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        for (int i = 0; i < 4; i++) sigaction(kNumbers[i], &action, &before[i]);
    }
    ~Signals() {
        for (int i = 0; i < 4; i++) sigaction(kNumbers[i], &before[i], nullptr);
        sigaltstack(&stack_before, nullptr);
    }
};
constexpr int Signals::kNumbers[4];

struct Grid {
    uint size[3], group[3], groups[3];
};

void place(Fiber& f, const Grid& grid, const uint* group, const uint* extent, uint index, uint simdgroups) {
    mh_position& p = f.at;
    const uint in[3] = {index % extent[0], index / extent[0] % extent[1], index / extent[0] / extent[1]};
    for (int d = 0; d < 3; d++) {
        p.in_group[d] = in[d];
        p.group[d] = group[d];
        p.in_grid[d] = group[d] * grid.group[d] + in[d];
        p.groups[d] = grid.groups[d];
        p.group_size[d] = extent[d];
        p.grid[d] = grid.size[d];
        p.full_group_size[d] = grid.group[d];
    }
    p.index = index;
    p.lane = index % 32;
    p.simdgroup = index / 32;
    p.simdgroups = simdgroups;
}

void* fresh_stack(size_t index) {
    while (stacks.size() <= index) {
        char* s = (char*)mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        mprotect(s, kPage, PROT_NONE);
        stacks.push_back(s);
    }
    void** top = (void**)(((uintptr_t)stacks[index] + kStack) & ~(uintptr_t)15);
    *--top = nullptr;
    *--top = (void*)start;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    return top;
}

// Let the lanes [low, high) of a simdgroup run until all of them are done or wait in a barrier.
void run_simdgroup(uint simdgroup, uint low, uint high, bool backward) {
    for (;;) {
        bool ran = false;
        for (uint i = low; i < high; i++) {
            Fiber& f = fibers[backward ? high - 1 - (i - low) : i];
            if (f.state != RUNS) continue;
            resume(f);
            ran = true;
        }
        if (ran) continue;
        Fiber* first = nullptr;
        uint mask = 0;
        for (uint i = low; i < high; i++) {
            if (fibers[i].state != IN_SIMD) continue;
            mask |= 1u << (i - low);
            if (!first) first = &fibers[i];
        }
        if (!first) return;
        for (uint i = low; i < high; i++) {
            const Fiber& f = fibers[i];
            if (f.state == IN_BARRIER)
                fail_at(first, "lanes wait in a simdgroup operation (line %d) and in a threadgroup_barrier (line %d)",
                        first->line, f.line);
            if (f.state == DONE)
                fail_at(first, "a simdgroup operation (line %d) after a lane returned (lane %d)", first->line,
                        int(i - low));
            if (f.operation != first->operation || f.line != first->line)
                fail_at(first, "divergent simdgroup operations: lanes wait at lines %d and %d", first->line, f.line);
        }
        active[simdgroup] = mask;
        scratch[simdgroup * kScratch] = 0;
        for (uint i = low; i < high; i++) {
            memcpy(&slots[(simdgroup * 32 + i - low) * kSlot], fibers[i].slot, kSlot);
            fibers[i].state = RUNS;
        }
    }
}

// Returns whether all threads of the group are done.
bool pass_barrier() {
    uint waiting = 0;
    Fiber* first = nullptr;
    for (auto& f : fibers) {
        if (f.state != IN_BARRIER) continue;
        waiting++;
        if (!first) first = &f;
    }
    if (!waiting) return true;
    if (waiting < fibers.size())
        fail_at(first, "threadgroup_barrier (line %d) is not reached by %d threads", first->line,
                int(fibers.size() - waiting));
    for (auto& f : fibers)
        if (f.line != first->line)
            fail_at(first, "threads wait in two threadgroup_barriers: lines %d and %d", first->line, f.line);
    for (auto& f : fibers) f.state = RUNS;
    return false;
}

void run_group(const Grid& grid, uint linear, bool backward) {
    const uint group[3] = {linear % grid.groups[0], linear / grid.groups[0] % grid.groups[1],
                           linear / grid.groups[0] / grid.groups[1]};
    uint extent[3], threads = 1;
    for (int d = 0; d < 3; d++) {
        const uint rest = grid.size[d] - group[d] * grid.group[d];
        extent[d] = rest < grid.group[d] ? rest : grid.group[d];
        threads *= extent[d];
    }
    const uint simdgroups = (threads + 31) / 32;
    // NaN, then large numbers: a kernel that reads what nobody wrote gives two answers.
    if (__start_mh_shared) memset(__start_mh_shared, backward ? 0x77 : 0xFF, __stop_mh_shared - __start_mh_shared);
    fibers.assign(threads, Fiber());
    slots.assign(simdgroups * 32 * kSlot, 0);
    scratch.assign(simdgroups * kScratch, 0);
    active.assign(simdgroups, 0);
    for (uint i = 0; i < threads; i++) {
        place(fibers[i], grid, group, extent, i, simdgroups);
        fibers[i].stack_pointer = fresh_stack(i);
        fibers[i].state = RUNS;
    }
    do {
        for (uint i = 0; i < simdgroups; i++) {
            const uint s = backward ? simdgroups - 1 - i : i, low = s * 32;
            run_simdgroup(s, low, low + 32 < threads ? low + 32 : threads, backward);
        }
    } while (!pass_barrier());
}
}  // namespace

extern "C" {
const char* mh_message() { return message; }
void* mh_fault_address() { return fault_address; }

void mh_fail(const char* what, int line) { fail_at(running, (std::string(what) + " (line %d)").c_str(), line, 0); }
const char* mh_exchange(const void* value, uint size, int operation, int line, uint* mask, char** shared) {
    memcpy(running->slot, value, size);
    const uint s = running->at.simdgroup;
    wait(IN_SIMD, operation, line);
    *mask = active[s];
    *shared = &scratch[s * kScratch];
    return &slots[s * 32 * kSlot];
}
void mh_barrier(int line) { wait(IN_BARRIER, 0, line); }

#define UNDEFINED(name, text)                                                \
    void __ubsan_handle_##name##_minimal_abort() {                           \
        fault_address = (char*)__builtin_return_address(0) - 1;              \
        fail("undefined behaviour: " text);                                  \
    }
UNDEFINED(type_mismatch, "a misaligned or null pointer")
UNDEFINED(add_overflow, "signed overflow in +")
UNDEFINED(sub_overflow, "signed overflow in -")
UNDEFINED(mul_overflow, "signed overflow in *")
UNDEFINED(negate_overflow, "signed overflow in negation")
UNDEFINED(divrem_overflow, "division by zero or overflow")
UNDEFINED(shift_out_of_bounds, "a shift out of range")
UNDEFINED(out_of_bounds, "an array index out of bounds")
UNDEFINED(float_cast_overflow, "a float out of an integer's range")
UNDEFINED(builtin_unreachable, "unreachable code")
UNDEFINED(missing_return, "a missing return")

// A buffer whose end lies against a page that cannot be touched, at an address congruent to `offset` modulo 16.
void* mh_allocate(size_t size, size_t offset, void** base, size_t* total) {
    const size_t body = (size + 64 + kPage - 1) / kPage * kPage;
    *total = body + 2 * kPage;
    char* m = (char*)mmap(nullptr, *total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(m + kPage, body, PROT_READ | PROT_WRITE);
    memset(m + kPage, kCanary, body);
    *base = m;
    uintptr_t a = (uintptr_t)(m + kPage + body - size);
    while (a % 16 != offset % 16) a--;
    return (void*)a;
}
// Returns the offset of the first byte outside the buffer that was written, or LONG_MIN.
long mh_damage(const void* data, size_t size, const void* base, size_t total) {
    const unsigned char* begin = (const unsigned char*)base + kPage;
    const unsigned char* end = (const unsigned char*)base + total - kPage;
    const unsigned char* d = (const unsigned char*)data;
    for (const unsigned char* p = begin; p < end; p++)
        if ((p < d || p >= d + size) && *p != kCanary) return p - d;
    return INT64_MIN;
}
void mh_free(void* base, size_t total) { munmap(base, total); }

// Returns 0, or 1 with mh_message() set.
int mh_dispatch(void (*kernel)(void* const*), void* const* bound, const uint* size, const uint* group, int backward,
                int flush) {
    Signals signals;
    const unsigned mode = _mm_getcsr();
    message[0] = 0;
    fault_address = nullptr;
    running = nullptr;
    entry = kernel;
    buffers = bound;
    if (sigsetjmp(failure, 1)) {
        _mm_setcsr(mode);
        return 1;
    }
    _mm_setcsr(flush ? mode | kFlushSubnormals : mode);
    Grid grid;
    uint total = 1;
    for (int d = 0; d < 3; d++) {
        grid.size[d] = size[d];
        grid.group[d] = group[d];
        grid.groups[d] = (size[d] + group[d] - 1) / group[d];
        total *= grid.groups[d];
    }
    for (uint i = 0; i < total; i++) run_group(grid, backward ? total - 1 - i : i, backward);
    _mm_setcsr(mode);
    return 0;
}

// The libgcc of Debian 12 lacks it.
__attribute__((weak)) __bf16 __truncsfbf2(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const uint16_t half = nan ? (bits >> 16) | 0x40 : (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
    __bf16 result;
    memcpy(&result, &half, 2);
    return result;
}
}
