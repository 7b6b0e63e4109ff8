// Every entry point on buffers of exactly their size, so that a sanitizer sees one byte too many.
// Built and run by test_sanitizers.py together with the kernels' own sources.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

extern "C" {
const char* bitnet_cpu_isa_name(int);
int bitnet_cpu_isa_force(const char*);
int bitnet_cpu_quantize_activation(const void*, int, int64_t, int64_t, int8_t*, float*, int);
int bitnet_cpu_quantize_weight(const void*, int, int64_t, int64_t, int, int8_t*, float*, int);
int bitnet_cpu_quantize_pack_weight(const void*, int, int64_t, int64_t, int, uint8_t*, float*, int);
int bitnet_cpu_pack_codes(const int8_t*, int64_t, int64_t, uint8_t*, int);
int bitnet_cpu_unpack_codes(const uint8_t*, int64_t, int64_t, int8_t*, int);
int bitnet_cpu_panel8_pack(const uint8_t*, int64_t, int64_t, uint8_t*, int64_t, int);
int bitnet_cpu_panel8_unpack(const uint8_t*, int64_t, int64_t, int64_t, uint8_t*, int);
int bitnet_cpu_ternary_linear(const int8_t*, const float*, const uint8_t*, int64_t, const float*, int64_t, const void*,
                              int, void*, int, int64_t, int64_t, int64_t, int);
struct Matrix {  // LinearArguments of ternary_linear.hpp
    const uint8_t* panels;
    int64_t panels_bytes;
    const float* w_scale;
    int64_t w_scale_count;
    const void* bias;
    int bias_dtype;
    void* y;
    int y_dtype;
    int64_t M, N, K;
};
int bitnet_cpu_multi_ternary_linear(const int8_t*, const float*, const Matrix*, int64_t, int);
int bitnet_cpu_bit_linear(const void*, int, const uint8_t*, int64_t, const float*, int64_t, const void*, int, void*,
                          int64_t, int64_t, int64_t, int);
int bitnet_cpu_ternary_linear_grad_input(const void*, int, const uint8_t*, const float*, int64_t, void*, int, int64_t,
                                         int64_t, int64_t, int);
int bitnet_cpu_ternary_linear_grad_weight(const void*, int, const int8_t*, const float*, void*, int, int64_t, int64_t,
                                          int64_t, int);
int bitnet_cpu_rms_norm(const void*, int, const void*, int, float, int64_t, int64_t, void*, int);
int bitnet_cpu_rms_norm_quantize(const void*, int, const void*, int, float, int64_t, int64_t, int8_t*, float*, int);
int bitnet_cpu_glu(const void*, const void*, int, int, int64_t, void*, int);
int bitnet_cpu_glu_norm_quantize(const void*, const void*, int, int, const void*, int, float, int64_t, int64_t, int8_t*,
                                 float*, int);
int bitnet_cpu_quantize_head(const void*, int, int64_t, int64_t, int8_t*, float*, int);
int bitnet_cpu_head_bounds(const void*, int, const int8_t*, const float*, int64_t, int64_t, float*, int);
int bitnet_cpu_int8_linear(const int8_t*, const float*, const int8_t*, const float*, void*, int, int64_t, int64_t, int64_t,
                           int);
int bitnet_cpu_top_k(const float*, int64_t, int64_t, int64_t, float*, int64_t*, int);
int bitnet_cpu_screened_top_k(const void*, int, const void*, int, const int8_t*, const float*, const float*, float*,
                              int64_t*, int64_t*, int64_t, int64_t, int64_t, int64_t, int);
int bitnet_cpu_float_linear(const void*, int, const void*, int, const void*, int, void*, int, int64_t, int64_t, int64_t,
                            int);
int bitnet_cpu_rope(const void*, int, const float*, const float*, int, const int64_t*, const int64_t*, const int64_t*,
                    int64_t, void*, int);
int bitnet_cpu_rope_kv_write(const void*, const void*, const void*, int, const float*, const float*, void*, void*,
                             float*, float*, const int64_t*, const int64_t*, int64_t, int64_t, int64_t, int64_t, int64_t,
                             int64_t, void*, int);
int bitnet_cpu_attention(const void*, int, const void*, const void*, const float*, const float*, const int64_t*,
                         const int64_t*, const int64_t*, float, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, void*,
                         int);
struct Norm {  // and the rest: the arguments of decoder_step.cpp
    const void* weight;
    int dtype;
    float eps;
};
struct Layer {
    Matrix matrices[7];
    Norm norms[6];
    int up_by_neuron, down_by_neuron;
};
struct Step {
    const void* embedding;
    const float *cos, *sin;
    const Layer* layers;
    int64_t layer_count, vocab, hidden, inner, heads, kv_heads, D, positions;
    Norm norm;
    float factor;
    int dtype, activation;
};
struct Call {
    const int64_t* ids;
    int64_t B, T;
    void* storage;
    float* scales;
    int64_t L;
    const int64_t *start, *first;
    void* out;
    int64_t* live;
};
int bitnet_cpu_decoder_step(const Step*, const Call*, int);
}

namespace {

// Memory of its own for each buffer: a vector may have spare capacity, which hides an overrun.
template <class T>
std::unique_ptr<T[]> buffer(int64_t count) {
    return std::unique_ptr<T[]>(new T[static_cast<size_t>(count)]);
}
void require(int status, const char* what) {
    if (status == 0) return;
    std::printf("%s failed: %d\n", what, status);
    std::exit(1);
}
// Bytes of small finite numbers in any of the three formats.
std::unique_ptr<uint8_t[]> numbers(int64_t count, int dtype) {
    const int64_t bytes = count * (dtype == 0 ? 4 : 2);
    auto data = buffer<uint8_t>(bytes);
    for (int64_t i = 0; i < bytes; ++i) data[i] = static_cast<uint8_t>(i % 2 == 0 ? i * 37 : 0x20 + i % 8 + (i % 3 ? 0x80 : 0));
    return data;
}

void run_head(int64_t M, int64_t N, int64_t K, int dtype, const uint8_t* x, const uint8_t* w, const int8_t* x_q,
              const float* x_scale, int threads) {
    const int64_t k = N < 5 ? N : 5;
    auto h = buffer<int8_t>(N * K);
    auto h_scale = buffer<float>(N), bounds = buffer<float>(2 * N), scores = buffer<float>(M * N);
    auto values = buffer<float>(M * k);
    auto ids = buffer<int64_t>(M * k), rescored = buffer<int64_t>(M);
    require(bitnet_cpu_quantize_head(w, dtype, N, K, h.get(), h_scale.get(), threads), "quantize_head");
    require(bitnet_cpu_head_bounds(w, dtype, h.get(), h_scale.get(), N, K, bounds.get(), threads), "head_bounds");
    require(bitnet_cpu_int8_linear(x_q, x_scale, h.get(), h_scale.get(), scores.get(), 0, M, N, K, threads), "int8_linear");
    require(bitnet_cpu_top_k(scores.get(), M, N, k, values.get(), ids.get(), threads), "top_k");
    require(bitnet_cpu_screened_top_k(x, dtype, w, dtype, h.get(), h_scale.get(), bounds.get(), values.get(), ids.get(),
                                      rescored.get(), M, N, K, k, threads),
            "screened_top_k");
}

void run(int64_t M, int64_t N, int64_t K, int dtype, int threads) {
    const int64_t R = (N + 3) / 4, panels_bytes = (N + 7) / 8 * ((K + 15) / 16) * 32;
    const auto w = numbers(N * K, dtype), x = numbers(M * K, dtype), bias = numbers(N, dtype);
    auto t = buffer<int8_t>(N * K), x_q = buffer<int8_t>(M * K);
    auto w_scale = buffer<float>(N), one_scale = buffer<float>(1), x_scale = buffer<float>(M);
    auto packed = buffer<uint8_t>(R * K), back = buffer<uint8_t>(R * K), panels = buffer<uint8_t>(panels_bytes);
    auto y = buffer<uint8_t>(M * N * (dtype == 0 ? 4 : 2));
    require(bitnet_cpu_quantize_weight(w.get(), dtype, N, K, 0, t.get(), one_scale.get(), threads), "quantize_weight");
    require(bitnet_cpu_quantize_weight(w.get(), dtype, N, K, 1, t.get(), w_scale.get(), threads), "quantize_weight rows");
    require(bitnet_cpu_pack_codes(t.get(), N, K, packed.get(), threads), "pack_codes");
    require(bitnet_cpu_quantize_pack_weight(w.get(), dtype, N, K, 1, back.get(), w_scale.get(), threads), "pack_weight");
    require(std::memcmp(packed.get(), back.get(), static_cast<size_t>(R * K)), "quantised and packed at once");
    require(bitnet_cpu_unpack_codes(packed.get(), N, K, t.get(), threads), "unpack_codes");
    require(bitnet_cpu_panel8_pack(packed.get(), N, K, panels.get(), panels_bytes, threads), "panel8_pack");
    require(bitnet_cpu_panel8_unpack(panels.get(), panels_bytes, N, K, back.get(), threads), "panel8_unpack");
    require(std::memcmp(packed.get(), back.get(), static_cast<size_t>(R * K)), "round trip");
    require(bitnet_cpu_quantize_activation(x.get(), dtype, M, K, x_q.get(), x_scale.get(), threads), "quantize_activation");
    require(bitnet_cpu_ternary_linear(x_q.get(), x_scale.get(), panels.get(), panels_bytes, one_scale.get(), 1, nullptr, 0,
                                      y.get(), dtype, M, N, K, threads),
            "ternary_linear");
    auto other = buffer<uint8_t>(M * N * (dtype == 0 ? 4 : 2));
    const Matrix matrices[] = {
        {panels.get(), panels_bytes, one_scale.get(), 1, nullptr, 0, y.get(), dtype, M, N, K},
        {panels.get(), 0, w_scale.get(), 1, nullptr, 0, nullptr, dtype, M, 0, K},
        {panels.get(), panels_bytes, w_scale.get(), N, bias.get(), dtype, other.get(), dtype, M, N, K},
    };
    require(bitnet_cpu_multi_ternary_linear(x_q.get(), x_scale.get(), matrices, 3, threads), "multi_ternary_linear");
    require(bitnet_cpu_bit_linear(x.get(), dtype, panels.get(), panels_bytes, w_scale.get(), N, bias.get(), dtype, y.get(),
                                  M, N, K, threads),
            "bit_linear");
    require(bitnet_cpu_float_linear(x.get(), dtype, w.get(), dtype, bias.get(), dtype, y.get(), dtype, M, N, K, threads),
            "float_linear");
    run_head(M, N, K, dtype, x.get(), w.get(), x_q.get(), x_scale.get(), threads);
    auto dx = buffer<uint8_t>(M * K * 4), dw = buffer<uint8_t>(N * K * 2);
    require(bitnet_cpu_ternary_linear_grad_input(y.get(), dtype, packed.get(), w_scale.get(), N, dx.get(), 0, M, N, K,
                                                 threads),
            "ternary_linear_grad_input");
    require(bitnet_cpu_ternary_linear_grad_weight(y.get(), dtype, x_q.get(), x_scale.get(), dw.get(), 1, M, N, K, threads),
            "ternary_linear_grad_weight");
}

// The ops on rows: the weight in another dtype than x, and heads strided as a projection leaves them.
void run_rows(int64_t M, int64_t K, int dtype, int threads) {
    const int64_t size = dtype == 0 ? 4 : 2, half = K / 2;
    const int gain_dtype = (dtype + 1) % 3;
    const auto x = numbers(M * K, dtype), u = numbers(M * K, dtype), gain = numbers(K, gain_dtype);
    const auto table = numbers(half, 0);
    auto y = buffer<uint8_t>(M * K * size);
    auto x_q = buffer<int8_t>(M * K);
    auto x_scale = buffer<float>(M);
    require(bitnet_cpu_rms_norm(x.get(), dtype, gain.get(), gain_dtype, 1e-5f, M, K, y.get(), threads), "rms_norm");
    require(bitnet_cpu_rms_norm_quantize(x.get(), dtype, gain.get(), gain_dtype, 1e-5f, M, K, x_q.get(), x_scale.get(),
                                         threads),
            "rms_norm_quantize");
    for (int activation = 0; activation < 2; ++activation) {
        require(bitnet_cpu_glu(x.get(), u.get(), dtype, activation, M * K, y.get(), threads), "glu");
        require(bitnet_cpu_glu_norm_quantize(x.get(), u.get(), dtype, activation, gain.get(), gain_dtype, 1e-5f, M, K,
                                             x_q.get(), x_scale.get(), threads),
                "glu_norm_quantize");
        require(bitnet_cpu_glu_norm_quantize(x.get(), u.get(), dtype, activation, nullptr, 0, 1e-5f, M, K, x_q.get(),
                                             x_scale.get(), threads),
                "glu_quantize");
    }
    const auto* angles = reinterpret_cast<const float*>(table.get());
    const int64_t sizes[] = {M, 1}, strides[] = {K, 0}, table_strides[] = {0, 0};
    require(bitnet_cpu_rope(x.get(), dtype, angles, angles, 2, sizes, strides, table_strides, half * 2, y.get(), threads),
            "rope");
}

// A cache with room for `spare` tokens more, float or int8; M tokens of K / 2 * 2 elements in 4 and 2 heads.
void run_cache(int64_t M, int64_t K, int dtype, bool int8, int64_t spare, int threads) {
    const int64_t B = 2, heads = 4, kv_heads = 2, D = K / 2 * 2, L = M + spare, start = spare / 2;
    const int64_t size = dtype == 0 ? 4 : 2, slot = int8 ? 1 : size;
    const auto q = numbers(B * heads * M * D, dtype), k = numbers(B * kv_heads * M * D, dtype);
    const auto table = numbers(M * D / 2, 0);
    auto keys = buffer<uint8_t>(B * kv_heads * L * D * slot), values = buffer<uint8_t>(B * kv_heads * L * D * slot);
    auto key_scale = buffer<float>(B * kv_heads * L), value_scale = buffer<float>(B * kv_heads * L);
    auto y = buffer<uint8_t>(B * heads * M * D * size);
    // The slots before the first token are read, too, and hold small numbers.
    std::memset(keys.get(), 1, static_cast<size_t>(B * kv_heads * L * D * slot));
    std::memset(values.get(), 1, static_cast<size_t>(B * kv_heads * L * D * slot));
    std::memset(key_scale.get(), 0, static_cast<size_t>(B * kv_heads * L) * sizeof(float));
    std::memset(value_scale.get(), 0, static_cast<size_t>(B * kv_heads * L) * sizeof(float));
    const auto* angles = reinterpret_cast<const float*>(table.get());
    const int64_t strides[] = {heads * M * D,    M * D, D, kv_heads * M * D, M * D, D, kv_heads * M * D, M * D, D, 0, 0, D / 2,
                               kv_heads * L * D, L * D, D, kv_heads * L * D, L * D, D, kv_heads * L,     L,     1,
                               kv_heads * L,     L,     1};
    require(bitnet_cpu_rope_kv_write(q.get(), k.get(), k.get(), dtype, angles, angles, keys.get(), values.get(),
                                     int8 ? key_scale.get() : nullptr, int8 ? value_scale.get() : nullptr, &start, strides,
                                     B, heads, kv_heads, M, D, L, y.get(), threads),
            "rope_kv_write");
    const int64_t first[] = {0, start + 1};
    const int64_t apart[] = {heads * M * D, M * D, D, kv_heads * L * D, L * D, D, kv_heads * L * D, L * D, D,
                             kv_heads * L,  L,     kv_heads * L, L};
    require(bitnet_cpu_attention(q.get(), dtype, keys.get(), values.get(), int8 ? key_scale.get() : nullptr,
                                 int8 ? value_scale.get() : nullptr, &start, spare % 2 == 0 ? first : nullptr, apart, 0.5f,
                                 B, heads, kv_heads, M, D, L, y.get(), threads),
            "attention");
}

// Two layers with and without the norms that a model may have, over a cache with room for one token more.
void run_step(int64_t T, int64_t D, int dtype, bool int8, bool norms, int threads) {
    const int64_t B = 2, heads = 4, kv_heads = 2, hidden = 33, inner = 41, vocab = 5, L = T + 3, start = 2;
    const int64_t size = dtype == 0 ? 4 : 2, wide = heads * D, narrow = kv_heads * D, slots = 2 * 2 * B * kv_heads * L;
    const int64_t N[] = {wide, narrow, narrow, hidden, inner, inner, hidden};
    const int64_t K[] = {hidden, hidden, hidden, wide, hidden, hidden, inner};
    const int64_t norm_sizes[] = {hidden, D, D, wide, hidden, inner};
    const auto embedding = numbers(vocab * hidden, dtype), table = numbers(L * D / 2, 0), bias = numbers(wide + inner + hidden, 1);
    auto w_scale = buffer<float>(1);
    w_scale[0] = 0.5f;
    std::vector<std::unique_ptr<uint8_t[]>> held;
    Layer layer{};
    for (int i = 0; i < 7; ++i) {
        const int64_t bytes = (N[i] + 7) / 8 * ((K[i] + 15) / 16) * 32;
        held.push_back(buffer<uint8_t>(bytes));
        std::memset(held.back().get(), 0x61, static_cast<size_t>(bytes));  // codes 1, 0, 2, 1
        layer.matrices[i] = {held.back().get(), bytes, w_scale.get(), 1, i % 2 ? bias.get() : nullptr, 1, nullptr, 0, 0, N[i], K[i]};
    }
    for (int i = 0; i < 6; ++i) {
        held.push_back(numbers(norm_sizes[i], 0));
        if (norms || i == 0 || i == 4) layer.norms[i] = {held.back().get(), 0, 1e-5f};
    }
    const Layer layers[] = {layer, layer};
    auto storage = buffer<uint8_t>(slots * D * (int8 ? 1 : size)), out = buffer<uint8_t>(B * T * hidden * size);
    auto scales = buffer<float>(slots);
    std::memset(storage.get(), 1, static_cast<size_t>(slots * D * (int8 ? 1 : size)));
    std::memset(scales.get(), 0, static_cast<size_t>(slots) * sizeof(float));
    auto ids = buffer<int64_t>(B * T);
    for (int64_t i = 0; i < B * T; ++i) ids[i] = i % vocab;
    const int64_t first[] = {0, 3};
    const auto* angles = reinterpret_cast<const float*>(table.get());
    const Step step{embedding.get(), angles, angles, layers, 2, vocab, hidden, inner, heads, kv_heads, D, L, layer.norms[0], 0.5f, dtype, norms};
    const Call call{ids.get(), B, T, storage.get(), int8 ? scales.get() : nullptr, L, &start, first, out.get(), nullptr};
    require(bitnet_cpu_decoder_step(&step, &call, threads), "decoder_step");
}

void run_all(int threads) {
    const int64_t Ms[] = {0, 1, 2, 3, 5, 12, 13, 129}, Ns[] = {0, 1, 7, 8, 9, 33, 71}, Ks[] = {0, 1, 15, 16, 17, 255, 300};
    int dtype = 0;
    for (int64_t M : Ms)
        for (int64_t N : Ns)
            for (int64_t K : Ks) run(M, N, K, dtype = (dtype + 1) % 3, threads);
    for (int64_t M : Ms)
        for (int64_t K : Ks) {
            run_rows(M, K, dtype = (dtype + 1) % 3, threads);
            run_cache(M, K, dtype, K % 2 == 0, M % 4 + 1, threads);
        }
    for (int i = 0; i < 12; ++i) run_step(i % 4 + 1, 2 + 6 * (i % 3), i % 3, i % 2 == 0, i < 6, threads);
    run_cache(1, 64, 1, false, 5000, threads);
    run_cache(3, 64, 0, true, 5001, threads);
    run_rows(150, 2000, 1, threads);
    run_rows(3, 131072, 2, threads);
    run(3, 1500, 2001, 1, threads);
    run(40, 9, 131072, 0, threads);
}

}  // namespace

int main() {
    for (int i = 0; bitnet_cpu_isa_name(i) != nullptr; ++i) {
        require(bitnet_cpu_isa_force(bitnet_cpu_isa_name(i)), "force");
        run_all(1);
        std::vector<std::thread> callers;
        for (int caller = 0; caller < 3; ++caller) callers.emplace_back(run_all, 3);
        for (std::thread& caller : callers) caller.join();
    }
    std::puts("done");
}
