// q (B, heads, T, D) over a cache -> out (B, T, heads, D). Contract: bitnet_torch/ops/attention.py.
//
// The rows of one key head (token-major, so what they see grows) are taken in blocks that read a chunk of the cache
// once. With many blocks each thread takes whole ones. With few, as in decoding, the chunks of a block are dealt out:
// first all scores, then, when the largest is known, all weights and the sums of each chunk, which are added in order.
#include <cstring>

#include "number.hpp"
#include "row_memory.hpp"

using namespace bitnet;

namespace {

constexpr int64_t kBlockRows = 32;
constexpr int64_t kFewRows = 8;     // up to which widening in registers, once for four rows, is cheaper than a panel
constexpr int64_t kCost = 10;       // of an element of a key and of its value, in the units of useful_threads
constexpr int64_t kMostThreads = 4;  // blocks for each thread, below which chunks are dealt out

struct Side {  // keys or values
    const char* data;
    const float* scale;
    int64_t batch, head, token, scale_batch, scale_head;  // strides in elements; scales lie side by side
};

// Rows of the queries of one sequence that share a key head and see keys from `low` on.
struct Block {
    int64_t b, head, begin, rows, low;
};

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
float larger(float a, float b) { return a != a || b > a || b != b ? (a != a ? a : b) : a; }

struct Attention {
    const Kernels& kernel;
    const AttentionKernels& step;
    const char* q;
    DType dtype;
    int64_t q_batch, q_head, q_token;
    Side keys, values;
    bool codes;
    float factor;
    int64_t start;
    const int64_t* first;
    int64_t B, heads, kv_heads, T, D, L;
    char* out;

    int64_t group() const { return heads / kv_heads; }
    int64_t width() const { return round_up(D, kWidth); }
    int64_t panel_stride() const { return width() + kWidth; }  // off a power of two, where cache lines would collide
    int64_t panel_size() const { return kKeyChunk * panel_stride(); }
    int64_t size_of_element() const { return codes ? 1 : static_cast<int64_t>(dtype_size(dtype)); }
    int64_t seen_by(const Block& block, int64_t row) const { return start + (block.begin + row) / group() - block.low + 1; }
    int64_t seen(const Block& block) const { return seen_by(block, block.rows - 1); }
    int64_t chunks(const Block& block) const { return (seen(block) + kKeyChunk - 1) / kKeyChunk; }

    // Asks for a chunk that is needed soon: a cache of all layers comes from memory.
    void expect(const Side& side, const Block& block, int64_t chunk) const {
#if defined(__GNUC__)
        const char* rows = static_cast<const char*>(lying(side, block, chunk).data);
        for (int64_t i = 0; i < count(block, chunk); ++i)
            for (int64_t d = 0; d < D * size_of_element(); d += 64) {
                const char* line = rows + i * side.token * size_of_element() + d;
                __builtin_prefetch(line);
                __asm__ volatile("" : : "r"(line));  // or the compiler takes the whole for doing nothing
            }
#else
        static_cast<void>(side), static_cast<void>(block), static_cast<void>(chunk);
#endif
    }

    int64_t count(const Block& block, int64_t chunk) const {
        const int64_t left = seen(block) - chunk * kKeyChunk;
        return left < kKeyChunk ? left : kKeyChunk;
    }
    // Keys or values of one chunk as they lie in the cache.
    CacheRows lying(const Side& side, const Block& block, int64_t chunk) const {
        const int64_t at = block.b * side.batch + block.head * side.head + (block.low + chunk * kKeyChunk) * side.token;
        return {side.data + at * size_of_element(), dtype, codes, side.token};
    }
    // The same as the block's rows read them: many rows in float32, from the panel.
    CacheRows readable(const Side& side, const Block& block, int64_t chunk, float* panel) const {
        const CacheRows rows = lying(side, block, chunk);
        if (block.rows <= kFewRows && D == width()) return rows;
        const int64_t n = count(block, chunk);
        if (codes)
            for (int64_t i = 0; i < n; ++i)
                step.widen_codes(static_cast<const int8_t*>(rows.data) + i * side.token, D, panel + i * panel_stride());
        else
            step.widen_rows(rows.data, dtype, side.token, n, D, panel, panel_stride());
        for (int64_t i = 0; D < width() && i < n; ++i)
            for (int64_t d = D; d < width(); ++d) panel[i * panel_stride() + d] = 0.0f;
        return {panel, kFloat32, false, panel_stride()};
    }
    const float* scales(const Side& side, const Block& block, int64_t chunk) const {
        if (!codes) return nullptr;
        return side.scale + block.b * side.scale_batch + block.head * side.scale_head + block.low + chunk * kKeyChunk;
    }
    // How many keys of a chunk a row sees.
    int64_t visible(const Block& block, int64_t row, int64_t chunk) const {
        const int64_t left = seen_by(block, row) - chunk * kKeyChunk, most = count(block, chunk);
        return left < 0 ? 0 : left < most ? left : most;
    }

    // The queries of a block times the factor, and a row of zeros where their number is odd.
    void load(const Block& block, float* x) const {
        for (int64_t r = 0; r < round_up(block.rows, 2); ++r) {
            float* row = x + r * width();
            std::memset(row, 0, static_cast<size_t>(width()) * sizeof(float));
            if (r == block.rows) break;
            const int64_t t = (block.begin + r) / group(), h = block.head * group() + (block.begin + r) % group();
            const int64_t at = block.b * q_batch + h * q_head + t * q_token;
            kernel.widen_row(q + at * static_cast<int64_t>(dtype_size(dtype)), dtype, D, row);
            for (int64_t d = 0; d < D; ++d) row[d] = row[d] * factor;
        }
    }
    // The scores of a chunk into s (rows, stride), and what is largest so far into m.
    void score(const Block& block, const float* x, int64_t chunk, float* panel, float* s, int64_t stride, float* m) const {
        const CacheRows rows = readable(keys, block, chunk, panel);
        expect(values, block, chunk);
        float* here = s + chunk * kKeyChunk;
        step.scores(x, round_up(block.rows, 2), rows, count(block, chunk), width(), here, stride);
        for (int64_t r = 0; r < block.rows; ++r) {
            const int64_t sees = visible(block, r, chunk);
            if (sees > 0) m[r] = larger(m[r], step.peak(here + r * stride, sees, scales(keys, block, chunk)));
        }
    }
    // Adds the sums of a chunk to l (rows) and o (rows, width).
    void weigh(const Block& block, int64_t chunk, float* panel, float* s, int64_t stride, const float* m, float* l,
               float* o) const {
        const CacheRows rows = readable(values, block, chunk, panel);
        float* here = s + chunk * kKeyChunk;
        int64_t counts[kBlockRows];
        for (int64_t r = 0; r < block.rows; ++r) {
            counts[r] = std::isfinite(m[r]) ? visible(block, r, chunk) : 0;
            if (counts[r] > 0) l[r] = l[r] + step.weights(here + r * stride, counts[r], m[r], scales(values, block, chunk));
        }
        step.values(here, stride, counts, block.rows, rows, width(), o);
    }
    void finish(const Block& block, const float* m, const float* l, float* o) const {
        for (int64_t r = 0; r < block.rows; ++r) {
            const int64_t t = (block.begin + r) / group(), h = block.head * group() + (block.begin + r) % group();
            float* row = o + r * width();
            for (int64_t d = 0; d < D; ++d) row[d] = row[d] / l[r];
            if (!std::isfinite(m[r]))
                for (int64_t d = 0; d < D; ++d) row[d] = float_of(kQuietNaNBits);
            const int64_t at = ((block.b * T + t) * heads + h) * D;
            kernel.narrow_row(row, D, dtype, out + at * static_cast<int64_t>(dtype_size(dtype)));
        }
    }

    int64_t blocks_of_a_head() const { return (T * group() + kBlockRows - 1) / kBlockRows; }
    int64_t blocks() const { return B * kv_heads * blocks_of_a_head(); }
    // The last rows, which see most, come first: a thread that starts late finds little left.
    Block block(int64_t index) const {
        const int64_t n = blocks_of_a_head(), begin = (n - 1 - index % n) * kBlockRows, left = T * group() - begin;
        const int64_t head = index / n % kv_heads, b = index / n / kv_heads;
        return {b, head, begin, left < kBlockRows ? left : kBlockRows, first == nullptr ? 0 : first[b]};
    }
    // A token before the first key sees its own only.
    bool padding(const Block& block) const { return start + block.begin / group() < block.low; }
    Block of_one_token(const Block& block) const {
        const int64_t token = block.begin / group(), end = (token + 1) * group() - block.begin;
        return {block.b, block.head, block.begin, end < block.rows ? end : block.rows, start + token};
    }

    // One block from beginning to end. False when there is no memory.
    bool run(const Block& block) const {
        const int64_t stride = round_up(seen(block), kKeyChunk), rows = round_up(block.rows, 2);
        struct Whole;
        // As much as the last token of the cache will need, so that nothing is allocated as the cache fills.
        float* x = row_memory<Whole>(rows * (2 * width() + round_up(L, kKeyChunk) + 2) + panel_size());
        if (x == nullptr) return false;
        float *o = x + rows * width(), *s = o + rows * width(), *m = s + rows * stride, *l = m + rows, *panel = l + rows;
        load(block, x);
        begin(rows, o, m, l);
        for (int64_t c = 0; c < chunks(block); ++c) score(block, x, c, panel, s, stride, m);
        for (int64_t c = 0; c < chunks(block); ++c) weigh(block, c, panel, s, stride, m, l, o);
        finish(block, m, l, o);
        return true;
    }
    void begin(int64_t rows, float* o, float* m, float* l) const {
        std::memset(o, 0, static_cast<size_t>(rows * width()) * sizeof(float));
        for (int64_t r = 0; r < rows; ++r) m[r] = -float_of(kInfinityBits), l[r] = 0.0f;
    }
    bool run_blocks(int threads) const {
        std::atomic<bool> starved{false};
        parallel_for(blocks(), 1, threads, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                Block rest = block(i);
                for (; rest.rows > 0 && padding(rest);) {
                    const Block one = of_one_token(rest);
                    if (!run(one)) starved = true;
                    rest.begin += one.rows, rest.rows -= one.rows;
                }
                if (rest.rows > 0 && !run(rest)) starved = true;
            }
        });
        return !starved;
    }
    bool run_chunks(int threads) const;
};

// The working memory of all blocks whose chunks are dealt out.
struct Dealt {
    int64_t rows, stride, chunks, width;
    float *x, *s, *m, *l, *o;  // of block i and chunk c: x[i], s[i], m[i][c], l[i][c], o[i][c]

    float* queries(int64_t i) const { return x + i * rows * width; }
    float* scores(int64_t i) const { return s + i * rows * stride; }
    float* peaks(int64_t i, int64_t c) const { return m + (i * chunks + c) * rows; }
    float* totals(int64_t i, int64_t c) const { return l + (i * chunks + c) * rows; }
    float* sums(int64_t i, int64_t c) const { return o + (i * chunks + c) * rows * width; }
};

bool Attention::run_chunks(int threads) const {
    const int64_t n = blocks(), rows = round_up(T * group() < kBlockRows ? T * group() : kBlockRows, 2);
    const int64_t most = (start + T + kKeyChunk - 1) / kKeyChunk, stride = most * kKeyChunk;
    struct Shared;
    const int64_t last = (L + kKeyChunk - 1) / kKeyChunk;  // reserved for the last token of the cache, as above
    float* x = row_memory<Shared>(n * rows * (width() + last * (kKeyChunk + width() + 2)));
    if (x == nullptr) return false;
    float *s = x + n * rows * width(), *m = s + n * rows * stride, *l = m + n * rows * most, *o = l + n * rows * most;
    const Dealt dealt{rows, stride, most, width(), x, s, m, l, o};
    std::atomic<bool> starved{false};
    const auto block_at = [&](int64_t i) {
        const Block whole = block(i);
        return padding(whole) ? of_one_token(whole) : whole;
    };
    // body(block, i, c, panel) for every chunk of every block.
    const auto each_chunk = [&](const auto& body) {
        parallel_for(n * most, even_grain(n * most, threads, 1), threads, [&](int64_t begin, int64_t end) {
            struct Panel;
            float* panel = row_memory<Panel>(panel_size());
            if (panel == nullptr) starved = true;
            for (int64_t task = begin; panel != nullptr && task < end; ++task) {
                const Block here = block_at(task / most);
                if (task % most < chunks(here)) body(here, task / most, task % most, panel);
            }
        });
    };
    for (int64_t i = 0; i < n; ++i) load(block_at(i), dealt.queries(i));
    each_chunk([&](const Block& here, int64_t i, int64_t c, float* panel) {
        begin(rows, dealt.sums(i, c), dealt.peaks(i, c), dealt.totals(i, c));
        score(here, dealt.queries(i), c, panel, dealt.scores(i), stride, dealt.peaks(i, c));
    });
    for (int64_t i = 0; i < n; ++i)
        for (int64_t c = 1; c < chunks(block_at(i)); ++c)
            for (int64_t r = 0; r < rows; ++r) dealt.peaks(i, 0)[r] = larger(dealt.peaks(i, 0)[r], dealt.peaks(i, c)[r]);
    each_chunk([&](const Block& here, int64_t i, int64_t c, float* panel) {
        weigh(here, c, panel, dealt.scores(i), stride, dealt.peaks(i, 0), dealt.totals(i, c), dealt.sums(i, c));
    });
    if (starved) return false;
    for (int64_t i = 0; i < n; ++i) {
        float *total = dealt.totals(i, 0), *sum = dealt.sums(i, 0);
        for (int64_t c = 1; c < chunks(block_at(i)); ++c) {
            for (int64_t r = 0; r < rows; ++r) total[r] = total[r] + dealt.totals(i, c)[r];
            for (int64_t j = 0; j < rows * width(); ++j) sum[j] = sum[j] + dealt.sums(i, c)[j];
        }
        finish(block_at(i), dealt.peaks(i, 0), total, sum);
    }
    return true;
}

}  // namespace

// Strides are those of batch, head and token of q, keys and values, then of batch and head of the two scales, in elements;
// the last dimensions are dense, and scales of one head lie side by side. `first` may be null. Gives kBadValue if the
// queries do not lie in [0, L) or a first key is below 0.
BITNET_EXPORT int bitnet_cpu_attention(const void* q, int dtype, const void* keys, const void* values,
                                       const float* key_scale, const float* value_scale, const int64_t* start,
                                       const int64_t* first, const int64_t* strides, float factor, int64_t B, int64_t heads,
                                       int64_t kv_heads, int64_t T, int64_t D, int64_t L, void* out, int threads) {
    if (!valid_dtype(dtype) || kv_heads < 1 || heads < 0 || heads % kv_heads != 0 || D < 0 || D > kMaxInFeatures ||
        (key_scale == nullptr) != (value_scale == nullptr) || !valid_matrix(B, T))
        return kInvalidArgument;
    if (*start < 0 || *start > L - T) return kBadValue;
    for (int64_t b = 0; first != nullptr && b < B; ++b)
        if (first[b] < 0) return kBadValue;
    if (B * heads * T * D == 0) return kOk;
    const Kernels& kernel = kernels();
    const FloatState state;
    const Side key_side{static_cast<const char*>(keys), key_scale, strides[3], strides[4], strides[5], strides[9], strides[10]};
    const Side value_side{static_cast<const char*>(values), value_scale, strides[6],  strides[7],
                          strides[8],                       strides[11], strides[12]};
    const Attention work{kernel, *kernel.attention, static_cast<const char*>(q), static_cast<DType>(dtype), strides[0],
                         strides[1], strides[2], key_side, value_side, key_scale != nullptr, factor, *start, first, B, heads,
                         kv_heads, T, D, L, static_cast<char*>(out)};
    // A product with a key and one with a value, in float32: about a tenth of what a core does with integers.
    threads = useful_threads(clamp_threads(threads), kCost * B * heads * T * (*start + T) * D);
    bool whole = threads == 1 || work.blocks() >= threads * kMostThreads;
    // Blocks that begin in the padding are cut up, which only the other way knows.
    for (int64_t b = 0; !whole && T > 1 && first != nullptr && b < B; ++b) whole = first[b] > *start;
    return (whole ? work.run_blocks(threads) : work.run_chunks(threads)) ? kOk : kOutOfMemory;
}
