// Some tokens of every sequence through all layers: ids -> hidden states (B, T, hidden) and the cache's next slots.
// Contract: bitnet_torch/ops/decoder_step.py. Every stage is the kernel of an op, called as its launcher calls it, so the
// bits are those of the ops; what is saved is the way through Python and PyTorch, eight times for each layer of each token.
#include <cstring>

#include "isa.hpp"
#include "neuron_rows.hpp"
#include "number.hpp"
#include "scratch.hpp"
#include "step.hpp"
#include "threads.hpp"

namespace bitnet {
namespace {

// The order of the launcher.
enum MatrixIndex { kQuery, kKey, kValue, kOutput, kGate, kUp, kDown, kMatrices };
enum NormIndex { kInputNorm, kQueryNorm, kKeyNorm, kMixedNorm, kPostNorm, kInnerNorm, kNorms };

struct Norm {
    const void* weight;  // null: there is none
    int dtype;
    float eps;
};

struct LayerArguments {
    LinearArguments matrices[kMatrices];  // without M, y and its dtype
    Norm norms[kNorms];
    int up_by_neuron, down_by_neuron;  // whether these are in the layouts of neuron_rows.hpp, for one token only
};

struct StepArguments {
    const void* embedding;  // (vocab, hidden) of dtype
    const float *cos, *sin; // (positions, D / 2)
    const LayerArguments* layers;
    int64_t layer_count, vocab, hidden, inner, heads, kv_heads, D, positions;
    Norm norm;
    float factor;
    int dtype, activation;
};

// One call: B sequences of T ids each, and the cache of all layers.
struct CallArguments {
    const int64_t* ids;
    int64_t B, T;
    void* storage;   // (layers, 2, B, kv_heads, L, D): keys and values, of dtype or int8
    float* scales;   // (layers, 2, B, kv_heads, L) of an int8 cache, else null
    int64_t L;
    const int64_t *start, *first;  // (), (B)
    void* out;       // (B, T, hidden)
    int64_t* live;   // null, or (layers, 2) of one token: neurons whose gate is alive, and whose code is not 0
};

// One layer's part of the cache.
struct CacheLayer {
    void *keys, *values;
    float *key_scale, *value_scale;
};

struct Buffers {
    void *x, *branch;            // the residual stream, and what is added to it
    int8_t* codes;               // the input of the next product
    float* scale;
    void *q, *k, *v, *turned, *mixed, *g, *u;
    float *cos, *sin;            // of each token
    int32_t* list;               // of neurons
};

class Step {
  public:
    Step(const StepArguments& a, const CallArguments& call, int threads)
        : a_(a), call_(call), dtype_(static_cast<DType>(a.dtype)), threads_(threads), M_(call.B * call.T) {}

    int run() {
        thread_local Scratch scratch;
        if (!reserve(scratch)) return kOutOfMemory;
        if (!embed() || !place()) return kInvalidArgument;
        for (int64_t i = 0; i < a_.layer_count; ++i) {
            const LayerArguments& layer = a_.layers[i];
            int status = attention_branch(layer, cache_of(i));
            if (status == kOk) status = add_branch();
            if (status == kOk) status = inner_branch(layer, call_.live == nullptr ? nullptr : call_.live + 2 * i);
            if (status == kOk) status = add_branch();
            if (status != kOk) return status;
        }
        return bitnet_cpu_rms_norm(b_.x, a_.dtype, a_.norm.weight, a_.norm.dtype, a_.norm.eps, M_, a_.hidden, call_.out,
                                   threads_);
    }

  private:
    int64_t wide() const { return a_.heads * a_.D; }
    int64_t narrow() const { return a_.kv_heads * a_.D; }

    bool reserve(Scratch& scratch) {
        const int64_t size = static_cast<int64_t>(dtype_size(dtype_));
        int64_t most = a_.hidden > a_.inner ? a_.hidden : a_.inner;
        most = most > wide() ? most : wide();
        const int64_t bytes[] = {a_.hidden * size, a_.hidden * size, most,          4,              wide() * size,
                                 narrow() * size,  narrow() * size,  wide() * size, wide() * size,  a_.inner * size,
                                 a_.inner * size,  a_.D * 2,         a_.D * 2,      (a_.inner + kListSlack) * 4};
        constexpr int kParts = sizeof bytes / sizeof bytes[0];
        int64_t at[kParts], total = 0;
        for (int i = 0; i < kParts; ++i) {
            at[i] = total;
            total += (M_ * bytes[i] + 63) / 64 * 64;
        }
        char* p = scratch.reserve(static_cast<size_t>(total));
        if (p == nullptr) return false;
        b_ = {p + at[0], p + at[1], reinterpret_cast<int8_t*>(p + at[2]), reinterpret_cast<float*>(p + at[3]), p + at[4],
              p + at[5], p + at[6], p + at[7], p + at[8], p + at[9], p + at[10], reinterpret_cast<float*>(p + at[11]),
              reinterpret_cast<float*>(p + at[12]), reinterpret_cast<int32_t*>(p + at[13])};
        return true;
    }

    CacheLayer cache_of(int64_t layer) const {
        const int64_t slots = call_.B * a_.kv_heads * call_.L, size = call_.scales != nullptr ? 1 : static_cast<int64_t>(dtype_size(dtype_));
        char* keys = static_cast<char*>(call_.storage) + 2 * layer * slots * a_.D * size;
        if (call_.scales == nullptr) return {keys, keys + slots * a_.D * size, nullptr, nullptr};
        float* scale = call_.scales + 2 * layer * slots;
        return {keys, keys + slots * a_.D * size, scale, scale + slots};
    }

    bool embed() {
        const int64_t* ids = call_.ids;
        const size_t row = static_cast<size_t>(a_.hidden) * dtype_size(dtype_);
        for (int64_t m = 0; m < M_; ++m) {
            if (ids[m] < 0 || ids[m] >= a_.vocab) return false;
            std::memcpy(static_cast<char*>(b_.x) + static_cast<size_t>(m) * row,
                        element(a_.embedding, dtype_, ids[m] * a_.hidden), row);
        }
        return true;
    }

    // The rows of the tables; a sequence's first token has position 0, and so has padding before it.
    bool place() {
        const int64_t half = a_.D / 2;
        for (int64_t m = 0; m < M_; ++m) {
            const int64_t at = *call_.start + m % call_.T - call_.first[m / call_.T], position = at < 0 ? 0 : at;
            if (position >= a_.positions) return false;
            std::memcpy(b_.cos + m * half, a_.cos + position * half, static_cast<size_t>(half) * 4);
            std::memcpy(b_.sin + m * half, a_.sin + position * half, static_cast<size_t>(half) * 4);
        }
        return true;
    }

    LinearArguments with(LinearArguments matrix, void* y) const {
        matrix.y = y;
        matrix.y_dtype = a_.dtype;
        matrix.M = M_;
        return matrix;
    }
    int normalise(const Norm& norm, const void* x, int64_t K) {
        return bitnet_cpu_rms_norm_quantize(x, a_.dtype, norm.weight, norm.dtype, norm.eps, M_, K, b_.codes, b_.scale, threads_);
    }
    int multiply(const LinearArguments* matrices, int64_t count) {
        return bitnet_cpu_multi_ternary_linear(b_.codes, b_.scale, matrices, count, threads_);
    }
    // Each head of q or k, where the model has norms for them.
    int normalise_heads(const Norm& norm, void* x, int64_t heads) {
        if (norm.weight == nullptr) return kOk;
        return bitnet_cpu_rms_norm(x, a_.dtype, norm.weight, norm.dtype, norm.eps, M_ * heads, a_.D, x, threads_);
    }

    int attention_branch(const LayerArguments& layer, const CacheLayer& cache) {
        const LinearArguments matrices[] = {with(layer.matrices[kQuery], b_.q), with(layer.matrices[kKey], b_.k),
                                            with(layer.matrices[kValue], b_.v)};
        int status = normalise(layer.norms[kInputNorm], b_.x, a_.hidden);
        if (status == kOk) status = multiply(matrices, 3);
        if (status == kOk) status = normalise_heads(layer.norms[kQueryNorm], b_.q, a_.heads);
        if (status == kOk) status = normalise_heads(layer.norms[kKeyNorm], b_.k, a_.kv_heads);
        if (status == kOk) status = write_cache(cache);
        if (status == kOk) status = attend(cache);
        return status == kOk ? project(layer.norms[kMixedNorm], b_.mixed, layer.matrices[kOutput]) : status;
    }

    // norm and product, or the product alone, which then quantises.
    int project(const Norm& norm, const void* x, const LinearArguments& matrix) {
        const LinearArguments m = with(matrix, b_.branch);
        if (norm.weight == nullptr)
            return bitnet_cpu_bit_linear(x, a_.dtype, m.panels, m.panels_bytes, m.w_scale, m.w_scale_count, m.bias,
                                         m.bias_dtype, m.y, M_, m.N, m.K, threads_);
        const int status = normalise(norm, x, m.K);
        return status == kOk ? multiply(&m, 1) : status;
    }

    int write_cache(const CacheLayer& cache) {
        const int64_t D = a_.D, T = call_.T, L = call_.L, kv = a_.kv_heads, half = D / 2;
        const int64_t strides[] = {T * wide(),  D, wide(), T * narrow(), D, narrow(), T * narrow(), D,  narrow(), T * half, 0,
                                   half,        kv * L * D, L * D,  D,   kv * L * D,  L * D,        D,  kv * L,   L,        1,
                                   kv * L,      L, 1};
        return bitnet_cpu_rope_kv_write(b_.q, b_.k, b_.v, a_.dtype, b_.cos, b_.sin, cache.keys, cache.values, cache.key_scale,
                                        cache.value_scale, call_.start, strides, call_.B, a_.heads, kv, T, D, L, b_.turned, threads_);
    }
    int attend(const CacheLayer& cache) {
        const int64_t D = a_.D, T = call_.T, L = call_.L, kv = a_.kv_heads;
        const int64_t strides[] = {T * wide(), T * D,  D,      kv * L * D, L * D, D, kv * L * D, L * D, D,
                                   kv * L,     L,      kv * L, L};
        return bitnet_cpu_attention(b_.turned, a_.dtype, cache.keys, cache.values, cache.key_scale, cache.value_scale, call_.start,
                                    call_.first, strides, a_.factor, call_.B, a_.heads, kv, T, D, L, b_.mixed, threads_);
    }

    int inner_branch(const LayerArguments& layer, int64_t* live) {
        const Norm& norm = layer.norms[kInnerNorm];
        int status = normalise(layer.norms[kPostNorm], b_.x, a_.hidden);
        if (status == kOk) status = gate_and_up(layer, live);
        // Without a norm its eps is not used, but must be valid.
        if (status == kOk)
            status = bitnet_cpu_glu_norm_quantize(b_.g, b_.u, a_.dtype, a_.activation, norm.weight, norm.dtype,
                                                  norm.weight == nullptr ? 1.0f : norm.eps, M_, a_.inner, b_.codes, b_.scale,
                                                  threads_);
        return status == kOk ? down(layer, live) : status;
    }

    int gate_and_up(const LayerArguments& layer, int64_t* live) {
        const LinearArguments matrices[] = {with(layer.matrices[kGate], b_.g), with(layer.matrices[kUp], b_.u)};
        const int status = multiply(matrices, layer.up_by_neuron ? 1 : 2);
        if (status != kOk || (live == nullptr && !layer.up_by_neuron)) return status;
        const int64_t count = live_gates(b_.g, dtype_, a_.inner, b_.list);
        if (live != nullptr) live[0] = count;
        if (!layer.up_by_neuron) return kOk;
        return multiply_rows(matrices[1], b_.codes, b_.scale, b_.list, count, threads_);
    }

    int down(const LayerArguments& layer, int64_t* live) {
        const LinearArguments matrix = with(layer.matrices[kDown], b_.branch);
        if (live == nullptr && !layer.down_by_neuron) return multiply(&matrix, 1);
        const int64_t count = live_codes(b_.codes, a_.inner, b_.list);
        if (live != nullptr) live[1] = count;
        if (!layer.down_by_neuron) return multiply(&matrix, 1);
        return multiply_columns(matrix, b_.codes, b_.scale, b_.list, count, threads_);
    }

    // x + branch, one rounding to the dtype: PyTorch's addition.
    int add_branch() {
        const Kernels& kernel = kernels();
        const FloatState state;
        constexpr int64_t kPiece = 512;
        float x[kPiece], y[kPiece];
        for (int64_t i = 0, count = M_ * a_.hidden; i < count; i += kPiece) {
            const int64_t n = count - i < kPiece ? count - i : kPiece;
            kernel.widen_row(element(b_.x, dtype_, i), dtype_, n, x);
            kernel.widen_row(element(b_.branch, dtype_, i), dtype_, n, y);
            for (int64_t j = 0; j < n; ++j) x[j] = x[j] + y[j];
            kernel.narrow_row(x, n, dtype_, const_cast<void*>(element(b_.x, dtype_, i)));
        }
        return kOk;
    }

    const StepArguments& a_;
    const CallArguments& call_;
    const DType dtype_;
    const int threads_;
    const int64_t M_;
    Buffers b_{};
};

// A layer's matrices lie by neurons only where one token is read, and a gate makes dead neurons; then their bytes must fit.
bool valid_layers(const StepArguments& a, const CallArguments& call) {
    const bool one = call.B * call.T == 1;
    if (call.live != nullptr && !one) return false;
    for (int64_t i = 0; i < a.layer_count; ++i) {
        const LayerArguments& layer = a.layers[i];
        const LinearArguments &up = layer.matrices[kUp], &down = layer.matrices[kDown];
        if (layer.up_by_neuron && !(one && a.activation == kRelu2 && up.panels_bytes == up.N * neuron_bytes(up.K))) return false;
        if (layer.down_by_neuron && !(one && down.panels_bytes == down.K * neuron_bytes(down.N))) return false;
    }
    return true;
}

bool valid(const StepArguments& a, const CallArguments& call) {
    return valid_dtype(a.dtype) && call.B >= 1 && call.T >= 1 && call.L >= 1 && a.layer_count >= 0 && a.hidden >= 1 &&
           a.inner >= 0 && a.heads >= 1 && a.kv_heads >= 1 && a.heads % a.kv_heads == 0 && a.D >= 2 && a.D % 2 == 0 &&
           a.D <= kMaxInFeatures && valid_matrix(call.B, call.T) &&
           valid_matrix(call.B * call.T, a.hidden + a.inner + 4 * a.heads * a.D);
}

}  // namespace
}  // namespace bitnet

BITNET_EXPORT int bitnet_cpu_decoder_step(const bitnet::StepArguments* step, const bitnet::CallArguments* call, int threads) {
    using namespace bitnet;
    if (!valid(*step, *call) || !valid_layers(*step, *call)) return kInvalidArgument;
    return Step(*step, *call, clamp_threads(threads)).run();
}
