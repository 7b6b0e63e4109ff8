// Which instruction set runs: detection, the table, and the switch that tests use.
#include "isa.hpp"

#include <atomic>
#include <cstring>

#if defined(BITNET_AVX2)
#if defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif
#if defined(BITNET_NEONDOT) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace bitnet {
namespace {

bool always() { return true; }

#if defined(BITNET_AVX2)
struct Leaf {
    uint32_t eax, ebx, ecx, edx;
};
Leaf cpuid(uint32_t leaf, uint32_t subleaf = 0) {
    Leaf r{};
#if defined(_MSC_VER)
    int v[4];
    __cpuid(v, 0);
    if (static_cast<uint32_t>(v[0]) < leaf) return r;
    __cpuidex(v, static_cast<int>(leaf), static_cast<int>(subleaf));
    std::memcpy(&r, v, sizeof r);
#else
    __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
#endif
    return r;
}
// The operating system must save the wide registers too: the CPU's word alone is not enough.
uint64_t saved_state() {
#if defined(_MSC_VER)
    return _xgetbv(0);
#else
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return uint64_t{high} << 32 | low;
#endif
}
bool has_avx2() {
    constexpr uint32_t kOsxsave = 1u << 27, kAvx = 1u << 28, kF16c = 1u << 29, kAvx2 = 1u << 5;
    constexpr uint32_t kFma = 1u << 12, kBasic = kOsxsave | kAvx | kF16c | kFma;
    if ((cpuid(1).ecx & kBasic) != kBasic || (cpuid(7).ebx & kAvx2) == 0) return false;
    return (saved_state() & 6) == 6;
}
#if defined(BITNET_AVXVNNI)
bool has_avxvnni() { return has_avx2() && (cpuid(7, 1).eax & 1u << 4) != 0; }
#endif
#if defined(BITNET_AVX512VNNI)
bool has_avx512vnni() {
    constexpr uint32_t kF = 1u << 16, kBw = 1u << 30, kVl = 1u << 31, kVnni = 1u << 11;
    constexpr uint32_t kBasic = kF | kBw | kVl;
    const Leaf leaf = cpuid(7);
    return has_avx2() && (leaf.ebx & kBasic) == kBasic && (leaf.ecx & kVnni) != 0 && (saved_state() & 0xe6) == 0xe6;
}
#endif
#endif

// Zen 5 and later.
bool reads_far_ahead() {
#if defined(BITNET_AVX2)
    const Leaf vendor = cpuid(0);
    const bool amd = vendor.ebx == 0x68747541u && vendor.edx == 0x69746e65u && vendor.ecx == 0x444d4163u;
    const uint32_t version = cpuid(1).eax, family = version >> 8 & 0xf;
    return amd && family == 0xf && family + (version >> 20 & 0xff) >= 0x1a;
#else
    return false;
#endif
}

#if defined(BITNET_NEONDOT)
bool has_neondot() {
#if defined(__APPLE__)
    return true;  // every Apple processor of this architecture
#elif defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
    return false;
#endif
}
#endif

struct Row {
    bool (*supported)();
    Kernels kernels;
};

// A row that differs from `base` in the integer products only.
constexpr Kernels with_products(Kernels base, const char* name, void (*ternary_panels)(const TernaryJob&, int64_t, int64_t),
                                void (*int8_rows)(const Int8Job&, int64_t, int64_t)) {
    base.name = name;
    base.ternary_panels = ternary_panels;
    base.int8_rows = int8_rows;
    return base;
}

constexpr Kernels kScalar = {"scalar", scalar::quantize_row, scalar::row_sum, scalar::weight_max, scalar::weight_sum,
     scalar::weight_codes, scalar::ternary_panels, scalar::widen_row, scalar::narrow_row, scalar::norm_row, scalar::glu_row,
     scalar::float_rows, scalar::float_dot, scalar::head_codes, scalar::int8_rows, scalar::head_sums,
    scalar::first_above, scalar::rope_row, scalar::product_tile, scalar::ternary_strip,
     scalar::int8_strip, &scalar::attention, scalar::neuron_dots, scalar::neuron_adds, scalar::live_gates, scalar::live_codes,
    scalar::ternary_finish};
#if defined(BITNET_AVX2)
constexpr Kernels kAvx2 = {
    "avx2", avx2::quantize_row, avx2::row_sum, avx2::weight_max, avx2::weight_sum, avx2::weight_codes,
    avx2::ternary_panels, avx2::widen_row, avx2::narrow_row, avx2::norm_row, avx2::glu_row,
    avx2::float_rows, avx2::float_dot, avx2::head_codes, avx2::int8_rows, avx2::head_sums,
    avx2::first_above, avx2::rope_row, avx2::product_tile, avx2::ternary_strip,
    avx2::int8_strip, &avx2::attention, avx2::neuron_dots, avx2::neuron_adds, scalar::live_gates, scalar::live_codes,
    avx2::ternary_finish};
#endif

#if defined(BITNET_AVX512VNNI)
constexpr Kernels with_neurons(Kernels base) {
    base.neuron_dots = avx512vnni::neuron_dots;
    base.neuron_adds = avx512vnni::neuron_adds;
    base.live_gates = avx512vnni::live_gates;
    base.live_codes = avx512vnni::live_codes;
    return base;
}
#endif

// Ordered from the plainest to the fastest: the last supported row is chosen.
const Row kTable[] = {
    {always, kScalar},
#if defined(BITNET_AVX2)
    {has_avx2, kAvx2},
#if defined(BITNET_AVXVNNI)
    {has_avxvnni, with_products(kAvx2, "avxvnni", avxvnni::ternary_panels, avxvnni::int8_rows)},
#endif
#if defined(BITNET_AVX512VNNI)
    {has_avx512vnni,
     with_neurons(with_products(kAvx2, "avx512vnni", avx512vnni::ternary_panels, avx512vnni::int8_rows))},
#endif
#endif
#if defined(BITNET_NEONDOT)
    {has_neondot, with_products(kScalar, "neondot", neondot::ternary_panels, scalar::int8_rows)},
#endif
};
constexpr int kRows = static_cast<int>(sizeof kTable / sizeof kTable[0]);

const Kernels* fastest() {
    const Kernels* best = &kTable[0].kernels;
    for (const Row& row : kTable)
        if (row.supported()) best = &row.kernels;
    return best;
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

Ahead prefetch_ahead() {
    static const bool far = reads_far_ahead();
    return far ? Ahead{3072, 2048} : Ahead{384, 256};
}

const Kernels& kernels() {
    const Kernels* k = chosen.load(std::memory_order_relaxed);
    if (k == nullptr) {
        k = fastest();
        chosen.store(k, std::memory_order_relaxed);  // every thread computes the same answer
    }
    return *k;
}

}  // namespace bitnet

BITNET_EXPORT const char* bitnet_cpu_isa() { return bitnet::kernels().name; }

// The name of the i-th instruction set that this machine can run, slowest first; null past the end.
BITNET_EXPORT const char* bitnet_cpu_isa_name(int i) {
    for (int row = 0; row < bitnet::kRows; ++row)
        if (bitnet::kTable[row].supported() && i-- == 0) return bitnet::kTable[row].kernels.name;
    return nullptr;
}

BITNET_EXPORT int bitnet_cpu_isa_force(const char* name) {
    for (const bitnet::Row& row : bitnet::kTable)
        if (std::strcmp(row.kernels.name, name) == 0 && row.supported()) {
            bitnet::chosen.store(&row.kernels);
            return bitnet::kOk;
        }
    return bitnet::kInvalidArgument;
}

// Python refuses a library that was built from other sources: the argument lists would not match.
BITNET_EXPORT int bitnet_cpu_abi() { return 13; }
