// x (M, K), float head and its int8 codes -> the k largest float logits. Contract: bitnet_torch/ops/screened_top_k.py.
//
//   for each block of tokens: codes of x and their bounds; int8 scores of all rows                   (all threads)
//   for each token: interval [s - e, s + e] of each row; T, the k-th largest lower end; candidates
//                   float logits of the candidates (all threads); the k best of them
#include <cmath>
#include <limits>

#include "float_linear.hpp"
#include "int8_linear.hpp"
#include "scratch.hpp"
#include "threads.hpp"
#include "top_k.hpp"

namespace bitnet {
namespace {

constexpr double kSlack = 1.0 + 0x1p-18, kScoreError = 0x1p-21;
constexpr float kLeast = 0x1p-100f, kLimit = 0x1p126f, kInfinity = std::numeric_limits<float>::infinity();
// Tokens whose scores are kept at once: each costs 4 bytes a row.
constexpr int64_t kBlock = 8;

struct Arguments {
    const void* x;
    DType x_dtype;
    const void* weight;
    DType weight_dtype;
    const int8_t* h;
    const float *h_scale, *bounds;
    float* values;
    int64_t *ids, *rescored;
    int64_t M, N, K, k;
};

// Memory of one call; the vectors of N rows serve one token after another.
struct Buffers {
    int8_t* codes;    // kBlock rows of int8_row_bytes
    float* x;         // kBlock rows of padded_floats
    float* scale;     // kBlock
    float* bound;     // a and b of each token
    float* score;     // kBlock x N
    float *low, *high, *logit;  // N
    int64_t* candidate;         // N
    float* best;                // k: lower ends; their ids go where the token's ids will
};

bool reserve(const Arguments& a, Scratch& scratch, Buffers& b) {
    size_t total = 0;
    const auto part = [&total](int64_t bytes) {
        const size_t at = total;
        total += (static_cast<size_t>(bytes) + 63) / 64 * 64;
        return at;
    };
    const size_t codes = part(kBlock * int8_row_bytes(a.K)), x = part(kBlock * padded_floats(a.K) * 4);
    const size_t scale = part(kBlock * 4), bound = part(2 * kBlock * 4), score = part(kBlock * a.N * 4);
    const size_t low = part(a.N * 4), high = part(a.N * 4), logit = part(a.N * 4), candidate = part(a.N * 8);
    const size_t best = part(a.k * 4);
    char* memory = scratch.reserve(total);
    if (memory == nullptr) return false;
    const auto floats = [memory](size_t at) { return reinterpret_cast<float*>(memory + at); };
    b = {reinterpret_cast<int8_t*>(memory + codes), floats(x), floats(scale), floats(bound), floats(score), floats(low),
         floats(high), floats(logit), reinterpret_cast<int64_t*>(memory + candidate), floats(best)};
    return true;
}

// In the lanes and the tree of float_linear, in float64: a square of a float32 neither overflows nor vanishes.
struct SquareSum {
    double lane[kFloatLanes] = {};

    void add(int64_t k, double value) { lane[k % kFloatLanes] += value * value; }
    double root() const {
        const double t0 = lane[0] + lane[4], t1 = lane[1] + lane[5], t2 = lane[2] + lane[6], t3 = lane[3] + lane[7];
        const double even = t0 + t2, odd = t1 + t3;
        return std::sqrt(even + odd);
    }
};

float at_least(double value) {
    const float rounded = static_cast<float>(value);
    return rounded < kLeast ? kLeast : rounded;  // NaN stays
}

// |x| and |x - x^| of a token, as the contract's a and b.
void token_bounds(const float* x, const int8_t* q, float scale, int64_t K, float* bound) {
    SquareSum size_sum, off_sum;
    for (int64_t k = 0; k < K; ++k) {
        const double value = x[k], real = static_cast<double>(q[k]) * scale;
        size_sum.add(k, value);
        off_sum.add(k, value - real);
    }
    const double size = size_sum.root(), off = off_sum.root();
    const double reach = size + off, error = off + kScoreError * reach;
    bound[0] = at_least(size * kSlack);
    bound[1] = at_least(error * kSlack);
}

void prepare_token(const Arguments& a, const Kernels& kernel, const Buffers& b, int64_t m, int64_t i) {
    const void* x = element(a.x, a.x_dtype, m * a.K);
    int8_t* q = b.codes + i * int8_row_bytes(a.K);
    float* row = b.x + i * padded_floats(a.K);
    int32_t sum;
    kernel.quantize_row(x, a.x_dtype, a.K, q, padded_int8(a.K), b.scale + i, &sum);
    add_magnitudes(q, padded_int8(a.K));
    kernel.widen_row(x, a.x_dtype, a.K, row);
    for (int64_t k = a.K; k < padded_floats(a.K); ++k) row[k] = 0.0f;
    token_bounds(row, q, b.scale[i], a.K, b.bound + 2 * i);
}

// The interval of each row's float logit; everything where nothing is known.
void intervals(const Arguments& a, const float* score, const float bound[2], int64_t first, int64_t last, float* low,
               float* high) {
    constexpr float kLargest = std::numeric_limits<float>::max();
    const float *p = a.bounds, *q = a.bounds + a.N, x_size = bound[0], x_off = bound[1];
    for (int64_t n = first; n < last; ++n) {
        const float from_weight = x_size * p[n], from_x = x_off * q[n];
        const float both = from_weight + from_x, e = both + kLeast;
        const float sizes = p[n] + q[n], product = x_size * sizes, s = score[n];
        const bool usable = (product < kLimit) & (std::fabs(s) <= kLargest) & (e <= kLargest);
        low[n] = usable ? s - e : -kInfinity;
        high[n] = usable ? s + e : kInfinity;
    }
}

int64_t find_candidates(const float* high, int64_t N, float threshold, int64_t* candidate) {
    int64_t count = 0;
    for (int64_t n = 0; n < N; ++n) {
        candidate[count] = n;
        count += high[n] >= threshold;
    }
    return count;
}

void choose(const Arguments& a, const Kernels& kernel, const Buffers& b, int64_t m, int64_t i, int threads) {
    float* values = a.values + m * a.k;
    int64_t* ids = a.ids + m * a.k;
    const int useful = useful_threads(threads, a.N * 16);
    parallel_for(a.N, even_grain(a.N, useful, 64), useful, [&](int64_t begin, int64_t end) {
        intervals(a, b.score + i * a.N, b.bound + 2 * i, begin, end, b.low, b.high);
    });
    select_top(kernel, b.low, nullptr, a.N, a.k, b.best, ids);
    const int64_t count = find_candidates(b.high, a.N, b.best[a.k - 1], b.candidate);
    const int workers = useful_threads(threads, count * a.K);
    parallel_for(count, even_grain(count, workers, 1), workers, [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j)
            b.logit[j] = kernel.float_dot(b.x + i * padded_floats(a.K), element(a.weight, a.weight_dtype, b.candidate[j] * a.K),
                                          a.weight_dtype, a.K);
    });
    select_top(kernel, b.logit, b.candidate, count, a.k, values, ids);
    a.rescored[m] = count;
}

int screen(const Arguments& a, int threads) {
    const Kernels& kernel = kernels();
    thread_local Scratch scratch;
    Buffers b;
    if (!reserve(a, scratch, b)) return kOutOfMemory;
    Int8Job job{};
    job.x = b.codes;
    job.x_stride = int8_row_bytes(a.K);
    job.x_scale = b.scale;
    job.h = a.h;
    job.h_scale = a.h_scale;
    job.y = b.score;
    job.y_dtype = kFloat32;
    job.N = a.N;
    job.K = a.K;
    job.ahead = prefetch_ahead().head;
    for (int64_t m = 0; m < a.M; m += kBlock) {
        job.tokens = a.M - m < kBlock ? a.M - m : kBlock;
        for (int64_t i = 0; i < job.tokens; ++i) prepare_token(a, kernel, b, m + i, i);
        run(kernel, job, threads);
        for (int64_t i = 0; i < job.tokens; ++i) choose(a, kernel, b, m + i, i, threads);
    }
    return kOk;
}

}  // namespace
}  // namespace bitnet

BITNET_EXPORT int bitnet_cpu_screened_top_k(const void* x, int x_dtype, const void* weight, int weight_dtype,
                                            const int8_t* h, const float* h_scale, const float* bounds, float* values,
                                            int64_t* ids, int64_t* rescored, int64_t M, int64_t N, int64_t K, int64_t k,
                                            int threads) {
    using namespace bitnet;
    if (!valid_dtype(x_dtype) || !valid_dtype(weight_dtype) || !valid_matrix(M, K) || !valid_matrix(N, K) ||
        !valid_matrix(kBlock, N) || K > kMaxInFeatures || k < 0 || k > N)
        return kInvalidArgument;
    if (k == 0) {
        for (int64_t m = 0; m < M; ++m) rescored[m] = 0;
        return kOk;
    }
    const FloatState state;
    return screen({x, static_cast<DType>(x_dtype), weight, static_cast<DType>(weight_dtype), h, h_scale, bounds, values,
                   ids, rescored, M, N, K, k},
                  clamp_threads(threads));
}
