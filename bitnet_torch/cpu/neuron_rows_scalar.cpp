// Products of listed neurons, portable. Layout: neuron_rows.hpp.
#include "isa.hpp"
#include "neuron_rows.hpp"
#include "number.hpp"
#include "panel8.hpp"

namespace bitnet {
namespace scalar {

void neuron_dots(const NeuronJob& job, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
        const uint8_t* row = job.codes + job.list[i] * job.chunks * kChunkBytes;
        int32_t sum = 0;
        for (int64_t at = 0; at < job.chunks * kChunkBytes; ++at)
            for (int64_t p = 0; p < 4; ++p)
                sum += job.x[at / kChunkBytes * kChunkCodes + 64 * p + at % kChunkBytes] * (row[at] >> 2 * p & 3);
        job.sums[job.list[i]] = sum;
    }
}

void neuron_adds(const NeuronJob& job, int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
        int32_t* sums = job.sums + chunk * kChunkCodes;
        for (int64_t n = 0; n < kChunkCodes; ++n) sums[n] = 0;
        for (int64_t i = 0; i < job.count; ++i) {
            const uint8_t* line = job.codes + (job.list[i] * job.chunks + chunk) * kChunkBytes;
            for (int64_t n = 0; n < kChunkCodes; ++n) sums[n] += job.x[job.list[i]] * (line[n % 64] >> n / 64 * 2 & 3);
        }
    }
}

void ternary_finish(const TernaryJob& job, const int32_t* sums, int64_t first, int64_t last) {
    for (int64_t n = first * kPanelRows; n < job.N && n < last * kPanelRows; ++n)
        store_output(job.y, job.y_dtype, n, sums[n] - *job.x_sum, *job.x_scale, job.w_scale[n * job.w_scale_step], job.bias,
                     job.bias_dtype, n);
}

// Without a branch: which neurons are alive cannot be predicted.
int64_t live_gates(const float* g, int64_t first, int64_t count, int32_t* list) {
    int64_t live = 0;
    for (int64_t i = 0; i < count; ++i) {
        list[live] = static_cast<int32_t>(first + i);
        live += !(g[i] <= 0.0f);
    }
    return live;
}

int64_t live_codes(const int8_t* x, int64_t count, int32_t* list) {
    int64_t live = 0;
    for (int64_t i = 0; i < count; ++i) {
        list[live] = static_cast<int32_t>(i);
        live += x[i] != 0;
    }
    return live;
}

}  // namespace scalar
}  // namespace bitnet
