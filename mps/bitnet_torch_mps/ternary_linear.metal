// Contract: bitnet_torch/ops/ternary_linear.py.
//
// Both kernels read the exchange layout as it is. 16 bytes of it are 16 columns of four output rows r, r + R, r + 2R and
// r + 3R, and all four meet the same 16 activations, so the codes need no rearrangement. Up to 8 tokens take a kernel in
// which a simdgroup owns packed rows; more tokens take half-precision tiles on the matrix units, exact because every
// partial sum is an integer of at most 2^24.
#include "number.metal"

struct Output {
    device const float* x_scale;  // (M,)
    device const float* w_scale;  // () or (N,)
    device const void* bias;      // (N,); not read if bias_dtype is DTYPE_NONE
    uint per_row;
    uint bias_dtype;
};

// The product in real units: each line is one rounding of the contract.
template <typename T>
inline T real(int acc, uint m, uint n, Output out) {
    const float scale = out.x_scale[m] * out.w_scale[out.per_row != 0u ? n : 0u];
    const T y = rounded<T>(float(acc) * scale);
    if (out.bias_dtype == DTYPE_NONE) return y;
    return rounded<T>(widened(y) + load_any(out.bias, out.bias_dtype, n));
}

// 16 bytes from column k on; past K they are 0. ALIGNED: K and the address are multiples of 16.
template <bool ALIGNED>
inline uint4 load16(device const uchar* row, uint k, uint K) {
    if (ALIGNED) return *reinterpret_cast<device const uint4*>(row + k);
    uint4 words = uint4(0u);
    for (uint i = 0; i < 16 && k + i < K; i++) words[i / 4] |= uint(row[k + i]) << (8 * (i % 4));
    return words;
}

// M <= TOKENS. A simdgroup owns ROWS packed rows, a lane 16 columns of every 512.
//
// A code is never shifted down: bits 2j and 2j + 1 of byte c of a word, in place, are code * 2^(2j + 8c) as a float.
// 2^(-8c) goes into the activation and 2^(-2j) into the sum, both exact; and x * (code - 1) summed is x * code summed
// less x summed. A lane's sums are integers of at most 2^20 in such units.
template <typename T, uint TOKENS, uint ROWS, bool ALIGNED>
[[kernel]] void ternary_vector(device const char* x [[buffer(0)]],         // (M, K)
                               device const float* x_scale [[buffer(1)]],  // (M,)
                               device const uchar* packed [[buffer(2)]],   // (R, K)
                               device const float* w_scale [[buffer(3)]],  // () or (N,)
                               device const void* bias [[buffer(4)]],      // (N,)
                               device T* y [[buffer(5)]],                  // (M, N)
                               constant uint4& sizes [[buffer(6)]],        // M, N, K, R
                               constant uint2& flags [[buffer(7)]],        // per_row, bias_dtype
                               uint group [[threadgroup_position_in_grid]],
                               uint lane [[thread_index_in_simdgroup]],
                               uint simdgroup [[simdgroup_index_in_threadgroup]],
                               uint simdgroups [[simdgroups_per_threadgroup]]) {
    const uint M = sizes.x, N = sizes.y, K = sizes.z, R = sizes.w;
    const uint r0 = (group * simdgroups + simdgroup) * ROWS;
    if (r0 >= R) return;
    float sums[TOKENS][ROWS][4] = {};
    float x_sums[TOKENS] = {};
    for (uint k = lane * 16; k < K; k += 512) {
        uint4 x_words[TOKENS];
        for (uint m = 0; m < TOKENS; m++) {
            device const uchar* row = reinterpret_cast<device const uchar*>(x) + ulong(min(m, M - 1)) * K;
            x_words[m] = load16<ALIGNED>(row, k, K);
        }
        uint4 w_words[ROWS];
        for (uint i = 0; i < ROWS; i++) w_words[i] = load16<ALIGNED>(packed + ulong(min(r0 + i, R - 1)) * K, k, K);
        for (uint word = 0; word < 4; word++)
            for (uint c = 0; c < 4; c++) {
                const float down = pow2(-8 * int(c));
                float codes[ROWS][4];
                for (uint i = 0; i < ROWS; i++)
                    for (uint j = 0; j < 4; j++) codes[i][j] = float(w_words[i][word] & (3u << (8 * c + 2 * j)));
                for (uint m = 0; m < TOKENS; m++) {
                    const float value = float(as_type<char4>(x_words[m][word])[c]);
                    x_sums[m] += value;
                    for (uint i = 0; i < ROWS; i++)
                        for (uint j = 0; j < 4; j++)
                            sums[m][i][j] = fma(value * down, codes[i][j], sums[m][i][j]);
                }
            }
    }
    // Lane (m * ROWS + i) * 4 + j finishes that output.
    int acc = 0;
    for (uint m = 0; m < TOKENS; m++)
        for (uint i = 0; i < ROWS; i++)
            for (uint j = 0; j < 4; j++) {
                const int own = int(sums[m][i][j] * pow2(-2 * int(j))) - int(x_sums[m]);
                const int total = simd_sum(own);
                if (lane == (m * ROWS + i) * 4 + j) acc = total;
            }
    const uint m = lane / (4 * ROWS), r = r0 + lane / 4 % ROWS, n = r + lane % 4 * R;
    if (lane >= TOKENS * ROWS * 4 || m >= M || r >= R || n >= N) return;
    const Output out = {x_scale, w_scale, bias, flags.x, flags.y};
    y[ulong(m) * N + n] = real<T>(acc, m, n, out);
}

constant constexpr uint TILE_M = 32;  // tokens of a threadgroup
constant constexpr uint TILE_R = 16;  // packed rows of a threadgroup: 64 output rows
constant constexpr uint TILE_K = 32;  // columns of a step
// Rows of tiles start in different banks.
constant constexpr uint STRIDE = TILE_K + 8;

// 128 threads: simdgroup j makes the 16 output rows that lie in bits 2j and 2j + 1.
template <typename T, bool ALIGNED>
[[kernel]] void ternary_tile(device const char* x [[buffer(0)]],         // (M, K)
                             device const float* x_scale [[buffer(1)]],  // (M,)
                             device const uchar* packed [[buffer(2)]],   // (R, K)
                             device const float* w_scale [[buffer(3)]],  // () or (N,)
                             device const void* bias [[buffer(4)]],      // (N,)
                             device T* y [[buffer(5)]],                  // (M, N)
                             constant uint4& sizes [[buffer(6)]],        // M, N, K, R
                             constant uint2& flags [[buffer(7)]],        // per_row, bias_dtype
                             uint2 group [[threadgroup_position_in_grid]],
                             uint index [[thread_index_in_threadgroup]],
                             uint field [[simdgroup_index_in_threadgroup]]) {
    threadgroup half left[TILE_M * STRIDE];
    threadgroup half right[4 * TILE_R * STRIDE];
    threadgroup float result[TILE_M * 4 * TILE_R];
    const uint M = sizes.x, N = sizes.y, K = sizes.z, R = sizes.w;
    const uint m0 = group.x * TILE_M, r0 = group.y * TILE_R;
    simdgroup_float8x8 acc[TILE_M / 8][TILE_R / 8];
    for (uint i = 0; i < TILE_M / 8; i++)
        for (uint j = 0; j < TILE_R / 8; j++) acc[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    // What this thread loads of each tile: 8 activations, and 4 bytes of codes.
    const uint x_row = index / 4, x_column = index % 4 * 8, w_row = index / 8, w_column = index % 8 * 4;
    for (uint k0 = 0; k0 < K; k0 += TILE_K) {
        for (uint i = 0; i < 8; i++) {
            const uint m = m0 + x_row, k = k0 + x_column + i;
            left[x_row * STRIDE + x_column + i] = m < M && k < K ? half(x[ulong(m) * K + k]) : half(0);
        }
        // Past K or R the codes are 1, which is weight 0.
        uint word = 0x55555555u;
        const uint r = r0 + w_row, k = k0 + w_column;
        if (r < R) {
            device const uchar* bytes = packed + ulong(r) * K + k;
            if (ALIGNED && k < K) {
                word = *reinterpret_cast<device const uint*>(bytes);
            } else {
                for (uint c = 0; c < 4 && k + c < K; c++)
                    word = (word & ~(0xFFu << (8 * c))) | uint(bytes[c]) << (8 * c);
            }
        }
        for (uint c = 0; c < 4; c++)
            for (uint j = 0; j < 4; j++)
                right[(j * TILE_R + w_row) * STRIDE + w_column + c] = half(int((word >> (8 * c + 2 * j)) & 3u) - 1);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint step = 0; step < TILE_K; step += 8) {
            simdgroup_half8x8 b[TILE_R / 8];
            for (uint j = 0; j < TILE_R / 8; j++)
                simdgroup_load(b[j], right + (field * TILE_R + j * 8) * STRIDE + step, STRIDE, ulong2(0, 0), true);
            for (uint i = 0; i < TILE_M / 8; i++) {
                simdgroup_half8x8 a;
                simdgroup_load(a, left + i * 8 * STRIDE + step, STRIDE);
                for (uint j = 0; j < TILE_R / 8; j++) simdgroup_multiply_accumulate(acc[i][j], a, b[j], acc[i][j]);
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    for (uint i = 0; i < TILE_M / 8; i++)
        for (uint j = 0; j < TILE_R / 8; j++)
            simdgroup_store(acc[i][j], result + i * 8 * 4 * TILE_R + field * TILE_R + j * 8, 4 * TILE_R);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const Output out = {x_scale, w_scale, bias, flags.x, flags.y};
    for (uint i = index; i < TILE_M * 4 * TILE_R; i += 128) {
        const uint m = m0 + i / (4 * TILE_R), r = r0 + i % TILE_R, n = r + i / TILE_R % 4 * R;
        if (m < M && r < R && n < N) y[ulong(m) * N + n] = real<T>(int(result[i]), m, n, out);
    }
}

#define TERNARY_VECTOR(T, TOKENS, ROWS, ALIGNED, SUFFIX)                          \
    template [[host_name("ternary_vector_" #TOKENS SUFFIX "_" #T)]] [[kernel]]    \
    decltype(ternary_vector<T, TOKENS, ROWS, ALIGNED>) ternary_vector<T, TOKENS, ROWS, ALIGNED>;
#define TERNARY_TILE(T, ALIGNED, SUFFIX)                                          \
    template [[host_name("ternary_tile" SUFFIX "_" #T)]] [[kernel]]               \
    decltype(ternary_tile<T, ALIGNED>) ternary_tile<T, ALIGNED>;
#define TERNARY_LINEAR(T, ALIGNED, SUFFIX)  \
    TERNARY_VECTOR(T, 1, 2, ALIGNED, SUFFIX) \
    TERNARY_VECTOR(T, 2, 2, ALIGNED, SUFFIX) \
    TERNARY_VECTOR(T, 4, 1, ALIGNED, SUFFIX) \
    TERNARY_VECTOR(T, 8, 1, ALIGNED, SUFFIX) \
    TERNARY_TILE(T, ALIGNED, SUFFIX)
TERNARY_LINEAR(float, true, "_aligned")
TERNARY_LINEAR(half, true, "_aligned")
TERNARY_LINEAR(bfloat, true, "_aligned")
TERNARY_LINEAR(float, false, "")
TERNARY_LINEAR(half, false, "")
TERNARY_LINEAR(bfloat, false, "")
