// One token through the matrices of neuron_rows.hpp, and the way to their layouts and back.
#include "neuron_rows.hpp"

#include <cstring>

#include "number.hpp"
#include "panel8.hpp"
#include "scratch.hpp"
#include "threads.hpp"

namespace bitnet {

int64_t live_gates(const void* g, DType dtype, int64_t count, int32_t* list) {
    constexpr int64_t kPiece = 1024;
    float wide[kPiece];
    int64_t live = 0;
    for (int64_t i = 0; i < count; i += kPiece) {
        const int64_t n = count - i < kPiece ? count - i : kPiece;
        kernels().widen_row(element(g, dtype, i), dtype, n, wide);
        live += kernels().live_gates(wide, i, n, list + live);
    }
    return live;
}

int64_t live_codes(const int8_t* x_q, int64_t count, int32_t* list) { return kernels().live_codes(x_q, count, list); }

namespace {

TernaryJob finishing(const LinearArguments& a, const float* x_scale, const int32_t* x_sum) {
    TernaryJob job{};
    job.x_sum = x_sum;
    job.x_scale = x_scale;
    job.w_scale = a.w_scale;
    job.w_scale_step = a.w_scale_count == 1 ? 0 : 1;
    job.bias = a.bias;
    job.bias_dtype = static_cast<DType>(a.bias == nullptr ? kFloat32 : a.bias_dtype);
    job.y = a.y;
    job.y_dtype = static_cast<DType>(a.y_dtype);
    job.tokens = 1;
    job.N = a.N;
    return job;
}

struct Memory {
    int32_t* sums;
    int8_t* x;
};
// `sums` int32 and `bytes` of x, both of the calling thread.
Memory working_memory(int64_t sums, int64_t bytes) {
    thread_local Scratch scratch;
    char* p = scratch.reserve(static_cast<size_t>(sums * 4 + bytes));
    return {reinterpret_cast<int32_t*>(p), p == nullptr ? nullptr : reinterpret_cast<int8_t*>(p + sums * 4)};
}

}  // namespace

int multiply_rows(const LinearArguments& up, const int8_t* x_q, const float* x_scale, const int32_t* list, int64_t live,
                  int threads) {
    const Kernels& kernel = kernels();
    const int64_t chunks = chunk_count(up.K), rows = panel_count(up.N) * kPanelRows;
    const Memory memory = working_memory((rows + 15) / 16 * 16, chunks * kChunkCodes);
    if (memory.sums == nullptr) return kOutOfMemory;
    std::memset(memory.sums, 0, static_cast<size_t>(rows) * 4);
    std::memcpy(memory.x, x_q, static_cast<size_t>(up.K));
    std::memset(memory.x + up.K, 0, static_cast<size_t>(chunks * kChunkCodes - up.K));
    const int32_t x_sum = kernel.row_sum(x_q, up.K);
    const NeuronJob job{up.panels, chunks, list, live, memory.x, memory.sums};
    const int several = useful_threads(threads, live * up.K);
    parallel_for(live, even_grain(live, several, 16), several,
                 [&](int64_t begin, int64_t end) { kernel.neuron_dots(job, begin, end); });
    const FloatState state;
    kernel.ternary_finish(finishing(up, x_scale, &x_sum), memory.sums, 0, panel_count(up.N));
    return kOk;
}

int multiply_columns(const LinearArguments& down, const int8_t* x_q, const float* x_scale, const int32_t* list, int64_t live,
                     int threads) {
    const Kernels& kernel = kernels();
    const int64_t chunks = chunk_count(down.N);
    const Memory memory = working_memory(chunks * kChunkCodes, 0);
    if (memory.sums == nullptr) return kOutOfMemory;
    const int32_t x_sum = kernel.row_sum(x_q, down.K);
    const NeuronJob job{down.panels, chunks, list, live, x_q, memory.sums};
    const TernaryJob finish = finishing(down, x_scale, &x_sum);
    const int several = useful_threads(threads, live * down.N);
    const int64_t panels = panel_count(down.N), in_chunk = kChunkCodes / kPanelRows;
    // One by one: there are few, and a thread that gets one more than the others holds them up.
    parallel_for(chunks, 1, several, [&](int64_t begin, int64_t end) {
        const FloatState state;
        kernel.neuron_adds(job, begin, end);
        const int64_t past = end * in_chunk;
        kernel.ternary_finish(finish, memory.sums, begin * in_chunk, past < panels ? past : panels);
    });
    return kOk;
}

namespace {

// Four words of four fields in each byte: field p of word q becomes field q of word p. Its own inverse.
void exchange_fields(uint32_t w[4]) {
    const uint32_t a = w[0], b = w[1], c = w[2], d = w[3];
    for (int p = 0; p < 4; ++p) {
        const int down = 2 * p;
        w[p] = (a >> down & kCodeMask) | (b >> down & kCodeMask) << 2 | (c >> down & kCodeMask) << 4 |
               (d >> down & kCodeMask) << 6;
    }
}
uint32_t load_word(const uint8_t* p) {
    uint32_t word;
    std::memcpy(&word, p, 4);
    return word;
}
void store_word(uint8_t* p, uint32_t word) { std::memcpy(p, &word, 4); }

// The word of row n and step s of a panel8 buffer, or null where there is none.
uint8_t* panel_word(uint8_t* panels, int64_t n, int64_t s, int64_t N, int64_t K) {
    if (n >= N || s >= padded_k(K) / kStepK) return nullptr;
    return panels + n / kPanelRows * panel_bytes(K) + s * kStepBytes + n % kPanelRows * 4;
}
void read_words(uint8_t* const at[4], uint32_t w[4]) {
    for (int i = 0; i < 4; ++i) w[i] = at[i] == nullptr ? kZeroCodes * 0x55u : load_word(at[i]);
}
void write_words(uint8_t* const at[4], const uint32_t w[4]) {
    for (int i = 0; i < 4; ++i)
        if (at[i] != nullptr) store_word(at[i], w[i]);
}

struct Shape {
    int64_t N, K;
};

// Row n: bytes 16q..16q+15 of a chunk and their field P are step 16 * chunk + 4P + q, whose word p has bytes 4p..4p+3.
void rows_of(uint8_t* panels, Shape shape, uint8_t* rows, int64_t n, bool pack) {
    uint8_t* row = rows + n * neuron_bytes(shape.K);
    for (int64_t c = 0; c < chunk_count(shape.K); ++c)
        for (int64_t q = 0; q < 4; ++q) {
            uint8_t *steps[4], *bytes[4];
            for (int i = 0; i < 4; ++i) {
                steps[i] = panel_word(panels, n, 16 * c + 4 * i + q, shape.N, shape.K);
                bytes[i] = row + c * kChunkBytes + 16 * q + 4 * i;
            }
            uint32_t w[4];
            read_words(pack ? steps : bytes, w);
            exchange_fields(w);
            write_words(pack ? bytes : steps, w);
        }
}

// Step s: byte b of a chunk and its field P are row 256 * chunk + 64P + b; byte j of word p is neuron 16s + 4p + j.
void columns_of(uint8_t* panels, Shape shape, uint8_t* columns, int64_t s, bool pack) {
    const int64_t stride = neuron_bytes(shape.N);
    for (int64_t c = 0; c < chunk_count(shape.N); ++c)
        for (int64_t b = 0; b < kChunkBytes; ++b) {
            uint8_t* rows[4];
            for (int i = 0; i < 4; ++i) rows[i] = panel_word(panels, kChunkCodes * c + 64 * i + b, s, shape.N, shape.K);
            uint8_t* first = columns + 16 * s * stride + c * kChunkBytes + b;
            uint8_t bytes[kStepK];
            for (int64_t k = 0; k < kStepK; ++k) bytes[k] = !pack && 16 * s + k < shape.K ? first[k * stride] : 0x55;
            uint32_t w[4];
            for (int p = 0; p < 4; ++p) w[p] = load_word(bytes + 4 * p);
            if (pack) read_words(rows, w);
            exchange_fields(w);
            if (!pack) {
                write_words(rows, w);
                continue;
            }
            for (int p = 0; p < 4; ++p) store_word(bytes + 4 * p, w[p]);
            for (int64_t k = 0; k < kStepK && 16 * s + k < shape.K; ++k) first[k * stride] = bytes[k];
        }
}

int convert(uint8_t* panels, int64_t N, int64_t K, uint8_t* neurons, int64_t neurons_bytes, int by_column, int pack,
            int threads) {
    const int64_t expected = by_column ? K * neuron_bytes(N) : N * neuron_bytes(K);
    if (!valid_weight(N, K) || neurons_bytes != expected) return kInvalidArgument;
    threads = useful_threads(clamp_threads(threads), N * K);
    if (!pack) std::memset(panels, 0x55, static_cast<size_t>(panel8_bytes(N, K)));  // rows past N
    const int64_t items = by_column ? padded_k(K) / kStepK : N;
    parallel_for(items, even_grain(items, threads, 1), threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            by_column ? columns_of(panels, {N, K}, neurons, i, pack != 0) : rows_of(panels, {N, K}, neurons, i, pack != 0);
    });
    return kOk;
}

bool valid_token(const LinearArguments& a, int64_t bytes) {
    return valid_weight(a.N, a.K) && a.panels_bytes == bytes && (a.w_scale_count == 1 || a.w_scale_count == a.N) &&
           valid_dtype(a.y_dtype) && (a.bias == nullptr || valid_dtype(a.bias_dtype)) && a.N > 0 && a.K > 0;
}

}  // namespace
}  // namespace bitnet

// Between panel8 and a neuron layout: `pack` into it, else out of it. Codes are moved as they are.
BITNET_EXPORT int bitnet_cpu_neuron_rows_convert(uint8_t* panels, int64_t N, int64_t K, uint8_t* neurons,
                                                 int64_t neurons_bytes, int by_column, int pack, int threads) {
    return bitnet::convert(panels, N, K, neurons, neurons_bytes, by_column, pack, threads);
}

// One token by one matrix, as decoder_step.cpp multiplies it: the listed neurons only. For tests.
BITNET_EXPORT int bitnet_cpu_neuron_rows_multiply(const bitnet::LinearArguments* a, const int8_t* x_q, const float* x_scale,
                                                  const int32_t* list, int64_t live, int by_column, int threads) {
    using namespace bitnet;
    if (!valid_token(*a, by_column ? a->K * neuron_bytes(a->N) : a->N * neuron_bytes(a->K))) return kInvalidArgument;
    return (by_column ? multiply_columns : multiply_rows)(*a, x_q, x_scale, list, live, clamp_threads(threads));
}
