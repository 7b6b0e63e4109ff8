// Every ternary product that is written for an instruction set, on buffers of exactly their size, against the scalar one.
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "isa.hpp"
#include "panel8.hpp"

using namespace bitnet;
using Product = void (*)(const TernaryJob&, int64_t, int64_t);

namespace {

uint32_t state = 12345;
uint32_t next() { return state = state * 1664525u + 1013904223u; }

// Memory of its own for each buffer: a vector may have spare capacity, which hides an overrun from a sanitizer.
template <class T>
std::unique_ptr<T[]> buffer(int64_t count) {
    return std::unique_ptr<T[]>(new T[static_cast<size_t>(count)]);
}

struct Case {
    int64_t M, N, K;
    int x, code;  // -1: random
};

bool agrees(Product product, const Case& c, DType dtype) {
    const int64_t K = padded_k(c.K), panels = panel_count(c.N), bytes = panel8_bytes(c.N, c.K);
    const int64_t y_bytes = c.M * c.N * static_cast<int64_t>(dtype_size(dtype));
    auto x = buffer<int8_t>(c.M * K);
    auto w = buffer<uint8_t>(bytes), want = buffer<uint8_t>(y_bytes), got = buffer<uint8_t>(y_bytes);
    auto x_sum = buffer<int32_t>(c.M);
    auto x_scale = buffer<float>(c.M), w_scale = buffer<float>(c.N), bias = buffer<float>(c.N);
    for (int64_t m = 0; m < c.M; ++m) {
        x_sum[m] = 0;
        x_scale[m] = static_cast<float>(m + 1) / 7;
        for (int64_t k = 0; k < K; ++k) {
            x[m * K + k] = static_cast<int8_t>(k >= c.K ? 0 : c.x == -1 ? next() >> 13 : c.x);
            x_sum[m] += x[m * K + k];
        }
    }
    for (int64_t i = 0; i < bytes; ++i) {
        uint8_t byte = 0;
        for (int p = 0; p < 4; ++p) byte |= static_cast<uint8_t>((c.code == -1 ? next() >> 16 : c.code) % 3 << 2 * p);
        w[i] = byte;
    }
    for (int64_t n = 0; n < c.N; ++n) {
        w_scale[n] = static_cast<float>(n % 11 + 1) / 3;
        bias[n] = static_cast<float>(n) - 3;
    }
    TernaryJob job{x.get(), K, x_sum.get(), x_scale.get(), w.get(), w_scale.get(), 1, bias.get(), kFloat32, want.get(), dtype,
                   c.M, c.N, K};
    scalar::ternary_panels(job, 0, panels);
    std::memset(got.get(), 0xee, static_cast<size_t>(y_bytes));
    job.y = got.get();
    const int64_t middle = panels / 3;  // two calls, as two threads would
    product(job, 0, middle);
    product(job, middle, panels);
    return std::memcmp(want.get(), got.get(), static_cast<size_t>(y_bytes)) == 0;
}

#if !defined(__aarch64__)
using Int8Product = void (*)(const Int8Job&, int64_t, int64_t);

// x: -1 is random, else every code; h likewise.
bool int8_agrees(Int8Product product, const Case& c, DType dtype) {
    const int64_t padded = (c.K + 31) / 32 * 32, stride = 2 * padded;
    const int64_t y_bytes = c.M * c.N * static_cast<int64_t>(dtype_size(dtype));
    auto x = buffer<int8_t>(c.M * stride), h = buffer<int8_t>(c.N * c.K);
    auto want = buffer<uint8_t>(y_bytes), got = buffer<uint8_t>(y_bytes);
    auto x_scale = buffer<float>(c.M), h_scale = buffer<float>(c.N);
    for (int64_t m = 0; m < c.M; ++m) {
        x_scale[m] = static_cast<float>(m + 1) / 7;
        for (int64_t k = 0; k < padded; ++k) {
            const int code = k >= c.K ? 0 : c.x == -1 ? static_cast<int8_t>(next() >> 13) : c.x;
            x[m * stride + k] = static_cast<int8_t>(code);
            x[m * stride + padded + k] = static_cast<int8_t>(code < 0 ? -code : code);
        }
    }
    for (int64_t i = 0; i < c.N * c.K; ++i)
        h[i] = static_cast<int8_t>(c.code == -1 ? static_cast<int>(next() >> 16) % 255 - 127 : c.code);
    for (int64_t n = 0; n < c.N; ++n) h_scale[n] = static_cast<float>(n % 11 + 1) / 3;
    Int8Job job{x.get(), stride, x_scale.get(), h.get(), h_scale.get(), want.get(), dtype, c.M, c.N, c.K};
    scalar::int8_rows(job, 0, c.N);
    std::memset(got.get(), 0xee, static_cast<size_t>(y_bytes));
    job.y = got.get();
    product(job, 0, c.N / 3);
    product(job, c.N / 3, c.N);
    return std::memcmp(want.get(), got.get(), static_cast<size_t>(y_bytes)) == 0;
}
#endif

int report(const char* name, const Case& c, DType dtype) {
    std::printf("%s differs: M=%lld N=%lld K=%lld x=%d code=%d dtype=%d\n", name, (long long)c.M, (long long)c.N,
                (long long)c.K, c.x, c.code, dtype);
    return 1;
}

}  // namespace

#if defined(__aarch64__)
extern "C" const char* bitnet_cpu_isa();
#endif

int main(int count, char**) {
#if defined(__aarch64__)
    if (count > 1) return std::puts(bitnet_cpu_isa()) < 0;
#endif
    const struct {
        const char* name;
        Product product;
    } products[] = {
#if defined(__aarch64__)
        {"neondot", neondot::ternary_panels},
#else
        {"avx2", avx2::ternary_panels}, {"avxvnni", avxvnni::ternary_panels}, {"avx512vnni", avx512vnni::ternary_panels},
#endif
    };
    std::vector<Case> cases;
    for (int64_t M : {1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 17, 25, 131})
        for (int64_t N : {1, 7, 8, 33, 100})
            for (int64_t K : {1, 16, 31, 257, 640}) cases.push_back({M, N, K, -1, -1});
    for (int x : {-128, 127})
        for (int code : {0, 2})
            for (int64_t M : {1, 2, 13}) cases.push_back({M, 9, 131072, x, code});
    int wrong = 0, run = 0;
    for (const auto& p : products)
        for (const Case& c : cases)
            for (DType dtype : {kFloat32, kBFloat16, kFloat16}) {
                ++run;
                if (!agrees(p.product, c, dtype)) wrong += report(p.name, c, dtype);
            }
#if !defined(__aarch64__)
    for (const auto& p : {std::pair<const char*, Int8Product>{"int8 avx2", avx2::int8_rows},
                          {"int8 avxvnni", avxvnni::int8_rows}, {"int8 avx512vnni", avx512vnni::int8_rows}})
        for (Case c : cases) {
            if (c.x != -1) c.code = c.code == 0 ? -127 : 127;
            ++run;
            if (!int8_agrees(p.second, c, kFloat32)) wrong += report(p.first, c, kFloat32);
        }
#endif
    std::printf("%d products, %d differ\n", run, wrong);
    return wrong != 0;
}
