// The pool. The caller is thread 0 and never depends on a worker that has not started: it works through the chunks
// itself, then shuts the gate and waits only for the workers that are inside. A worker that the system has not
// scheduled (or has put on the caller's own core) costs nothing but its help.
//
//   gate = tickets << 16 | workers inside
//     caller: write the job, open the gate (tickets = wanted workers), advance the epoch, wake the sleepers
//     worker: on a new epoch take a ticket (compare-and-swap), work, leave
//     caller: out of chunks -> drop the remaining tickets -> wait until nobody is inside
//   A worker reads the job only after it holds a ticket, and the job changes only when nobody is inside.
#include "threads.hpp"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#define BITNET_POSIX 1
#include <pthread.h>
#include <signal.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace bitnet {
namespace {

// Long enough to cover the gaps between the layers of a token, short enough not to burn an idle core.
constexpr std::chrono::microseconds kSpin{200};
constexpr std::chrono::microseconds kPoliteAfter{5};
constexpr uint32_t kInside = 0xffffu, kTicket = 0x10000u;

void relax() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__) && !defined(_MSC_VER)
    __asm__ volatile("yield");
#endif
}

// True once `done()`; false when `limit` has passed. After a while the core is offered to others at every turn:
// the thread that is waited for may have been put on this very core.
template <class Done, class Turn>
bool spin_until(const Done& done, std::chrono::microseconds limit, const Turn& turn) {
    using Clock = std::chrono::steady_clock;
    if (done()) return true;
    const Clock::time_point start = Clock::now();
    for (;;) {
        for (int i = 0; i < 64; ++i) {
            if (done()) return true;
            relax();
        }
        const auto waited = Clock::now() - start;
        if (waited > limit) return false;
        if (waited > kPoliteAfter) {
            std::this_thread::yield();
            turn();
        }
    }
}

// Where threads run. Left alone, the system often wakes a worker on the core of its waker, and both then take turns on
// it while other cores idle: two threads at the speed of one, for as long as the calls follow each other. A fixed pinning
// breaks as soon as another process pushes the caller elsewhere. So a worker that finds itself on the caller's core
// forbids itself that core, once for each time that something moved. Elsewhere the scheduler is trusted.
class Placement {
  public:
    void remember_allowed() {
#if defined(__linux__)
        usable_ = sched_getaffinity(0, sizeof allowed_, &allowed_) == 0;
#endif
    }
    void caller_is_here() {
#if defined(__linux__)
        caller_.store(sched_getcpu(), std::memory_order_relaxed);
#endif
    }
    // Called by a worker that is not computing.
    void step_aside() const {
#if defined(__linux__)
        const int core = sched_getcpu();
        if (core < 0 || core >= CPU_SETSIZE || core != caller_.load(std::memory_order_relaxed) || !usable_) return;
        cpu_set_t others = allowed_;
        CPU_CLR(core, &others);
        // A refusal leaves the worker where it is, which is slow and right.
        if (CPU_COUNT(&others) > 0) sched_setaffinity(0, sizeof others, &others);
#endif
    }

#if defined(__linux__)
  private:
    cpu_set_t allowed_{};  // written before the first worker starts
    bool usable_ = false;
    std::atomic<int> caller_{-1};
#endif
};

struct Job {
    void (*body)(const void*, int64_t, int64_t);
    const void* context;
    int64_t count, grain;
};

class Pool {
  public:
    // False when another caller has the workers.
    bool run(const Job& job, int threads) {
        std::unique_lock<std::mutex> owner(busy_, std::try_to_lock);
        if (!owner.owns_lock()) return false;
        grow(threads - 1);
        placement_.caller_is_here();
        job_ = job;
        next_.store(0, std::memory_order_relaxed);
        const int helpers = threads - 1 < workers_ ? threads - 1 : workers_;
        gate_.store(static_cast<uint32_t>(helpers) * kTicket);
        epoch_.fetch_add(1);
        wake(sleepers_, worker_wake_);
        work();
        gate_.fetch_and(kInside);  // no one enters from here on
        wait_until_empty();
        return true;
    }

  private:
    void work() {
        for (;;) {
            const int64_t begin = next_.fetch_add(job_.grain, std::memory_order_relaxed);
            if (begin >= job_.count) return;
            const int64_t end = job_.count - begin < job_.grain ? job_.count : begin + job_.grain;
            job_.body(job_.context, begin, end);
        }
    }

    bool enter() {
        uint32_t gate = gate_.load();
        while (gate >= kTicket)
            if (gate_.compare_exchange_weak(gate, gate - kTicket + 1)) return true;
        return false;
    }

    // A sleeper counts itself before it looks at the condition again, and the other side changes the condition before
    // it looks at the count (all sequentially consistent): one of the two always sees the other.
    void wake(const std::atomic<int>& sleepers, std::condition_variable& condition) {
        if (sleepers.load() == 0) return;
        { std::lock_guard<std::mutex> lock(sleep_); }
        condition.notify_all();
    }
    template <class Done, class Turn>
    void sleep_until(const Done& done, std::atomic<int>& sleepers, std::condition_variable& condition,
                     const Turn& turn) {
        if (spin_until(done, crowded_.load() ? std::chrono::microseconds{0} : kSpin, turn)) return;
        std::unique_lock<std::mutex> lock(sleep_);
        sleepers.fetch_add(1);
        condition.wait(lock, done);
        sleepers.fetch_sub(1);
    }
    void wait_until_empty() {
        sleep_until([this] { return gate_.load() == 0; }, callers_, caller_wake_, [] {});
    }

    void worker(uint32_t seen) {
        const FloatState state;  // a new thread inherits its creator's
        for (;;) {
            sleep_until([this, seen] { return epoch_.load() != seen; }, sleepers_, worker_wake_,
                        [this] { placement_.step_aside(); });
            seen = epoch_.load();
            placement_.step_aside();
            if (!enter()) continue;
            work();
            if (gate_.fetch_sub(1) == 1) wake(callers_, caller_wake_);
        }
    }

    // Only the owner of `busy_` grows the pool. A system that refuses more threads leaves us with fewer.
    void grow(int wanted) {
        if (workers_ >= wanted) return;
        if (workers_ == 0) placement_.remember_allowed();
        crowded_.store(static_cast<unsigned>(wanted) >= std::thread::hardware_concurrency());
#if defined(BITNET_POSIX)
        sigset_t all, before;  // signals belong to the interpreter's threads
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
#endif
        try {
            for (; workers_ < wanted; ++workers_)
                std::thread([this, seen = epoch_.load()] { worker(seen); }).detach();
        } catch (const std::system_error&) {
        } catch (const std::bad_alloc&) {
        }
#if defined(BITNET_POSIX)
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
#endif
    }

    std::mutex busy_, sleep_;
    std::condition_variable worker_wake_, caller_wake_;
    int workers_ = 0;
    Job job_{};
    Placement placement_;
    std::atomic<bool> crowded_{false};
    // Separate cache lines: workers spin on the epoch while others count chunks.
    alignas(64) std::atomic<uint32_t> epoch_{0};
    alignas(64) std::atomic<uint32_t> gate_{0};
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<int> sleepers_{0};
    std::atomic<int> callers_{0};
};

// Never destroyed: the workers are detached and may touch the pool until the process is gone.
std::atomic<Pool*> current{nullptr};

// A forked child has none of the workers, and the locks may be held by threads that no longer exist.
// It leaves the old pool alone and makes its own at the first call.
void forget_pool() { current.store(nullptr); }

Pool* pool() {
    Pool* p = current.load();
    if (p != nullptr) return p;
#if defined(BITNET_POSIX)
    static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
    if (registered != 0) return nullptr;  // without it a fork would hang: better one thread
#endif
    Pool* fresh = new (std::nothrow) Pool;
    if (fresh == nullptr || current.compare_exchange_strong(p, fresh)) return fresh;
    delete fresh;  // another thread was first
    return p;
}

}  // namespace

void parallel_for_raw(int64_t count, int64_t grain, int threads, void (*body)(const void*, int64_t, int64_t),
                      const void* context) {
    if (count <= 0) return;
    if (threads > 1 && grain < count) {
        const int64_t chunks = (count + grain - 1) / grain;
        Pool* p = pool();
        if (p != nullptr && p->run({body, context, count, grain}, chunks < threads ? static_cast<int>(chunks) : threads))
            return;
    }
    body(context, 0, count);
}

#if defined(__x86_64__) || defined(_M_X64)
FloatState::FloatState() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
FloatState::~FloatState() { _mm_setcsr(static_cast<unsigned>(saved_)); }
#elif defined(__aarch64__) && !defined(_MSC_VER)
FloatState::FloatState() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
}
FloatState::~FloatState() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_)); }
#else
FloatState::FloatState() : saved_(0) {}
FloatState::~FloatState() {}
#endif

}  // namespace bitnet
