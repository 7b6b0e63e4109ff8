// Contract: bitnet_torch/ops/rope.py. A thread turns one pair of one head.
//
// The tables are read where they lie: head m takes their row m / repeats % table_rows, which is what broadcasting over
// the dimensions in front of the positions and behind them means.
#include "rotation.metal"

template <typename T>
[[kernel]] void rope(device const T* x [[buffer(0)]],           // (M, 2 * H)
                     device const float* cosines [[buffer(1)]], // (table_rows, H)
                     device const float* sines [[buffer(2)]],   // (table_rows, H)
                     device T* y [[buffer(3)]],                 // (M, 2 * H)
                     constant uint2& period [[buffer(4)]],      // repeats, table_rows
                     uint2 place [[thread_position_in_grid]],
                     uint2 size [[threads_per_grid]]) {
    const uint j = place.x, H = size.x;
    const ulong first = ulong(place.y) * (2 * H) + j, second = first + H;
    const ulong table = ulong(place.y / period.x % period.y) * H + j;
    const Pair<T> pair = turned<T>(widened(x[first]), widened(x[second]), cosines[table], sines[table]);
    y[first] = pair.first;
    y[second] = pair.second;
}

#define ROPE(T) template [[host_name("rope_" #T)]] [[kernel]] decltype(rope<T>) rope<T>;
ROPE(float)
ROPE(half)
ROPE(bfloat)
