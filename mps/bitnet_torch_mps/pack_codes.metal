// Contract: bitnet_torch/ops/pack_codes.py. A thread owns a byte, which holds column k of rows r, r + R, r + 2R, r + 3R.
// A bad code sets a flag; the host then finds it and names it.
#include "number.metal"

[[kernel]] void pack_codes(device const char* t [[buffer(0)]],       // (N, K)
                           device uchar* packed [[buffer(1)]],       // (R, K)
                           device atomic_int* flag [[buffer(2)]],
                           constant uint& N [[buffer(3)]],
                           uint2 place [[thread_position_in_grid]],
                           uint2 size [[threads_per_grid]]) {
    uint byte = 0;
    bool bad = false;
    for (uint j = 0; j < 4; j++) {
        const uint n = place.y + j * size.y;
        // Rows past N hold code 1.
        const int code = n < N ? int(t[ulong(n) * size.x + place.x]) : 0;
        bad = bad || code < -1 || code > 1;
        byte |= uint(code + 1) << (2 * j);
    }
    packed[ulong(place.y) * size.x + place.x] = uchar(byte & 0xFFu);
    if (bad) atomic_store_explicit(flag, 1, memory_order_relaxed);
}

[[kernel]] void unpack_codes(device const uchar* packed [[buffer(0)]],  // (R, K)
                             device char* t [[buffer(1)]],              // (N, K)
                             device atomic_int* flag [[buffer(2)]],
                             constant uint& N [[buffer(3)]],
                             uint2 place [[thread_position_in_grid]],
                             uint2 size [[threads_per_grid]]) {
    const uint byte = packed[ulong(place.y) * size.x + place.x];
    for (uint j = 0; j < 4; j++) {
        const uint n = place.y + j * size.y;
        if (n < N) t[ulong(n) * size.x + place.x] = char(int((byte >> (2 * j)) & 3u) - 1);
    }
    if ((byte & (byte >> 1) & 0x55u) != 0u) atomic_store_explicit(flag, 1, memory_order_relaxed);
}
