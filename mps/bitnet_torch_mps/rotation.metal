// The rotation of one pair, inside a kernel. Contract: bitnet_torch/ops/rope.py.
#include "number.metal"

template <typename T>
struct Pair {
    T first, second;
};

template <typename T>
inline Pair<T> turned(float x1, float x2, float c, float s) {
    const Pair<T> y = {rounded<T>(x1 * c - x2 * s), rounded<T>(x2 * c + x1 * s)};
    return y;
}
