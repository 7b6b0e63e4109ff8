// What this machine can do at most: bytes read and integer multiply-accumulates in a second. The benchmark harness
// divides by these. Nothing that computes a result comes through here, so there is no row in the table of isa.cpp; the
// wide loops carry their instruction set as an attribute, because they must exist whatever the table holds.
#include <cstring>

#include "common.hpp"
#include "threads.hpp"

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#include <immintrin.h>
#define BITNET_WIDE 1
#define BITNET_TARGET(isa) __attribute__((target(isa)))
// gcc 10 and clang 11 know no AVX-VNNI.
#if (defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11)
#define BITNET_VNNI 1
#endif
#endif

namespace bitnet {
namespace {

constexpr int64_t kLine = 64;

// `streams` linear walks side by side; what is read is folded into a value that the caller must use.
uint64_t read_plain(const uint8_t* p, int64_t bytes, int streams) {
    const int64_t stride = bytes / streams / kLine * kLine;
    uint64_t fold[8] = {};
    for (int64_t i = 0; i < stride; i += kLine)
        for (int s = 0; s < streams; ++s) {
            uint64_t line[8];
            std::memcpy(line, p + s * stride + i, kLine);
            for (int j = 0; j < 8; ++j) fold[j] ^= line[j];
        }
    for (int j = 1; j < 8; ++j) fold[0] ^= fold[j];
    return fold[0];
}

// 1024 products at a time, as the compiler vectorises it for the plainest machine.
int64_t macs_plain(int64_t rounds, int32_t* sink) {
    alignas(64) int8_t a[1024], b[1024];
    for (int i = 0; i < 1024; ++i) {
        a[i] = static_cast<int8_t>(i);
        b[i] = static_cast<int8_t>(i * 7);
    }
    int32_t sum = 0;
    for (int64_t r = 0; r < rounds; ++r) {
        a[r & 1023] ^= 1;
        for (int i = 0; i < 1024; ++i) sum += int32_t{a[i]} * int32_t{b[i]};
    }
    *sink = sum;
    return rounds * 1024;
}

#if defined(BITNET_WIDE)
BITNET_TARGET("avx2") uint64_t read_avx2(const uint8_t* p, int64_t bytes, int streams) {
    const int64_t stride = bytes / streams / kLine * kLine;
    __m256i a = _mm256_setzero_si256(), b = a;
    for (int64_t i = 0; i < stride; i += kLine)
        for (int s = 0; s < streams; ++s) {
            const __m256i* line = reinterpret_cast<const __m256i*>(p + s * stride + i);
            a = _mm256_xor_si256(a, _mm256_loadu_si256(line));
            b = _mm256_xor_si256(b, _mm256_loadu_si256(line + 1));
        }
    a = _mm256_xor_si256(a, b);
    uint64_t fold;
    std::memcpy(&fold, &a, sizeof fold);
    return fold;
}
BITNET_TARGET("avx512f") uint64_t read_avx512(const uint8_t* p, int64_t bytes, int streams) {
    const int64_t stride = bytes / streams / kLine * kLine;
    __m512i a = _mm512_setzero_si512();
    for (int64_t i = 0; i < stride; i += kLine)
        for (int s = 0; s < streams; ++s) a = _mm512_xor_si512(a, _mm512_loadu_si512(p + s * stride + i));
    uint64_t fold;
    std::memcpy(&fold, &a, sizeof fold);
    return fold;
}

// Twelve independent chains cover the latency of every instruction below on two pipes. They are named one by one: an
// array of them stays in memory, which halves the figure. The empty asm makes each operand look new, so that the
// compiler neither hoists nor merges a product.
#define BITNET_TWELVE(f) f(s0) f(s1) f(s2) f(s3) f(s4) f(s5) f(s6) f(s7) f(s8) f(s9) f(s10) f(s11)
#define BITNET_MACS(name, isa, V, ones, width, step, add)                                                   \
    BITNET_TARGET(isa) int64_t name(int64_t rounds, int32_t* sink) {                                        \
        [[maybe_unused]] const V words = ones; V code = ones, x = ones;                                                                            \
        V s0 = x, s1 = x, s2 = x, s3 = x, s4 = x, s5 = x, s6 = x, s7 = x, s8 = x, s9 = x, s10 = x, s11 = x; \
        for (int64_t r = 0; r < rounds; ++r) {                                                              \
            BITNET_TWELVE(step)                                                                             \
        }                                                                                                   \
        x = add(add(add(s0, s1), add(s2, s3)), add(add(s4, s5), add(s6, s7)));                              \
        x = add(x, add(add(s8, s9), add(s10, s11)));                                                        \
        std::memcpy(sink, &x, sizeof *sink);                                                                \
        return rounds * 12 * width;                                                                         \
    }
#define BITNET_NEW(v) __asm__ volatile("" : "+v"(v));
#define BITNET_MADDUBS256(s) BITNET_NEW(code) s = _mm256_add_epi16(s, _mm256_maddubs_epi16(code, x)); BITNET_NEW(s)
#define BITNET_MADDUBS512(s) BITNET_NEW(code) s = _mm512_add_epi16(s, _mm512_maddubs_epi16(code, x)); BITNET_NEW(s)
#define BITNET_MADDWD256(s) \
    BITNET_NEW(code) s = _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(code, x), words)); BITNET_NEW(s)
#define BITNET_DPBUSD256(s) s = _mm256_dpbusd_avx_epi32(s, code, x); BITNET_NEW(s)
#define BITNET_DPBUSD512(s) s = _mm512_dpbusd_epi32(s, code, x); BITNET_NEW(s)

BITNET_MACS(macs_maddubs256, "avx2", __m256i, _mm256_set1_epi8(1), 32, BITNET_MADDUBS256, _mm256_add_epi16)
BITNET_MACS(macs_maddwd256, "avx2", __m256i, _mm256_set1_epi8(1), 32, BITNET_MADDWD256, _mm256_add_epi32)
BITNET_MACS(macs_maddubs512, "avx512f,avx512bw", __m512i, _mm512_set1_epi8(1), 64, BITNET_MADDUBS512, _mm512_add_epi16)
#endif
#if defined(BITNET_VNNI)
BITNET_MACS(macs_vnni256, "avx2,avxvnni", __m256i, _mm256_set1_epi8(1), 32, BITNET_DPBUSD256, _mm256_add_epi32)
BITNET_MACS(macs_vnni512, "avx512f,avx512vnni", __m512i, _mm512_set1_epi8(1), 64, BITNET_DPBUSD512, _mm512_add_epi32)
#endif

using Read = uint64_t (*)(const uint8_t*, int64_t, int);
using Macs = int64_t (*)(int64_t, int32_t*);

Read widest_read() {
#if defined(BITNET_WIDE)
    if (__builtin_cpu_supports("avx512f")) return read_avx512;
    if (__builtin_cpu_supports("avx2")) return read_avx2;
#endif
    return read_plain;
}

struct Unit {
    const char* name;
    bool (*supported)();
    Macs run;
};
const Unit kUnits[] = {
    {"plain", [] { return true; }, macs_plain},
#if defined(BITNET_WIDE)
    {"maddubs256", [] { return __builtin_cpu_supports("avx2") != 0; }, macs_maddubs256},
    {"maddwd256", [] { return __builtin_cpu_supports("avx2") != 0; }, macs_maddwd256},
    {"maddubs512", [] { return __builtin_cpu_supports("avx512bw") != 0; }, macs_maddubs512},
#endif
#if defined(BITNET_VNNI)
    {"vnni256", [] { return __builtin_cpu_supports("avxvnni") != 0; }, macs_vnni256},
    {"vnni512", [] { return __builtin_cpu_supports("avx512vnni") != 0; }, macs_vnni512},
#endif
};

}  // namespace
}  // namespace bitnet

// Reads [data, data + bytes) once, an equal part by each thread; *fold keeps the reads from being optimised away.
BITNET_EXPORT int bitnet_cpu_limit_read(const void* data, int64_t bytes, int streams, int threads, uint64_t* fold) {
    using namespace bitnet;
    threads = clamp_threads(threads);
    if (bytes < 0 || streams < 1 || streams > 64) return kInvalidArgument;
    const Read read = widest_read();
    const int64_t part = bytes / threads / kLine * kLine;
    uint64_t folds[kMaxThreads] = {};
    parallel_for(threads, 1, threads, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
            folds[t] = read(static_cast<const uint8_t*>(data) + t * part, part, streams);
    });
    *fold = 0;
    for (int t = 0; t < threads; ++t) *fold ^= folds[t];
    return kOk;
}

// Multiply-accumulates of int8 done by all threads together with one kind of instruction; -1 if it is not to be had.
BITNET_EXPORT int64_t bitnet_cpu_limit_macs(const char* unit, int64_t rounds, int threads) {
    using namespace bitnet;
    threads = clamp_threads(threads);
    for (const Unit& u : kUnits) {
        if (std::strcmp(u.name, unit) != 0 || !u.supported()) continue;
        int64_t counts[kMaxThreads] = {};
        parallel_for(threads, 1, threads, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t) {
                int32_t sink;
                counts[t] = u.run(rounds, &sink);
                *const_cast<volatile int32_t*>(&sink) = sink;
            }
        });
        int64_t total = 0;
        for (int t = 0; t < threads; ++t) total += counts[t];
        return total;
    }
    return -1;
}
