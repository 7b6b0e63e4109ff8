// simdgroup_matrix: 8 by 8 of half, bfloat or float; each lane holds two elements, in the layout of Apple's GPUs.
#pragma once
namespace metal {
template <class T, int Rows = 8, int Columns = 8>
struct simdgroup_matrix {
    static_assert(Rows == 8 && Columns == 8, "simdgroup_matrix: only 8 by 8");
    static_assert(is_floating_point_v<T>, "simdgroup_matrix: half, bfloat or float only");
    vec<T, 2> e;
    simdgroup_matrix() = default;
    explicit simdgroup_matrix(T diagonal);
    thread vec<T, 2>& thread_elements() { return e; }
};
typedef simdgroup_matrix<float> simdgroup_float8x8;
typedef simdgroup_matrix<half> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat> simdgroup_bfloat8x8;

inline uint mh_row(uint lane) { return ((lane / 4) & 4) + (lane / 2) % 4; }
inline uint mh_column(uint lane) { return ((lane / 4) & 2) * 2 + (lane % 2) * 2; }

template <class T, int Rows, int Columns>
simdgroup_matrix<T, Rows, Columns>::simdgroup_matrix(T diagonal) {
    uint row = mh_row(mh_current->lane), column = mh_column(mh_current->lane);
    e[0] = row == column ? diagonal : (T)0.0f;
    e[1] = row == column + 1 ? diagonal : (T)0.0f;
}
template <class T, int Rows, int Columns>
inline simdgroup_matrix<T, Rows, Columns> make_filled_simdgroup_matrix(T value) {
    simdgroup_matrix<T, Rows, Columns> m;
    m.e[0] = value;
    m.e[1] = value;
    return m;
}
template <class T, class P>
inline void simdgroup_load(thread simdgroup_matrix<T>& m, P source, ulong stride = 8, ulong2 origin = (ulong2)(0ul),
                           bool transpose = false, int line = __builtin_LINE()) {
    mh_gather(0, 40, line);
    uint row = mh_row(mh_current->lane), column = mh_column(mh_current->lane);
    for (uint k = 0; k < 2; k++)
        m.e[k] = transpose ? source[(column + k + origin.y) * stride + row + origin.x]
                           : source[(row + origin.y) * stride + column + k + origin.x];
}
template <class T, class P>
inline void simdgroup_store(simdgroup_matrix<T> m, P target, ulong stride = 8, ulong2 origin = (ulong2)(0ul),
                            bool transpose = false, int line = __builtin_LINE()) {
    mh_gather(0, 41, line);
    uint row = mh_row(mh_current->lane), column = mh_column(mh_current->lane);
    for (uint k = 0; k < 2; k++)
        target[transpose ? (column + k + origin.y) * stride + row + origin.x
                         : (row + origin.y) * stride + column + k + origin.x] = m.e[k];
}
// d = a * b + c, with float additions in the order of the inner dimension; the first lane computes it for all.
template <class TD, class TA, class TB, class TC>
inline void simdgroup_multiply_accumulate(thread simdgroup_matrix<TD>& d, simdgroup_matrix<TA> a,
                                          simdgroup_matrix<TB> b, simdgroup_matrix<TC> c,
                                          int line = __builtin_LINE()) {
    struct Operands {
        float a[2], b[2], c[2];
    } mine = {{(float)a.e[0], (float)a.e[1]}, {(float)b.e[0], (float)b.e[1]}, {(float)c.e[0], (float)c.e[1]}};
    auto lanes = mh_gather(mine, 42, line);
    if (lanes.active != 0xffffffffu) mh_fail("a simdgroup_matrix operation needs all 32 lanes", line);
    float* product = (float*)(lanes.scratch + 64);
    if (!lanes.scratch[0]) {
        lanes.scratch[0] = 1;
        float left[8][8], right[8][8];
        for (uint i = 0; i < 32; i++)
            for (uint k = 0; k < 2; k++) {
                left[mh_row(i)][mh_column(i) + k] = lanes[i].a[k];
                right[mh_row(i)][mh_column(i) + k] = lanes[i].b[k];
                product[mh_row(i) * 8 + mh_column(i) + k] = lanes[i].c[k];
            }
        for (int i = 0; i < 8; i++)
            for (int j = 0; j < 8; j++)
                for (int k = 0; k < 8; k++) product[i * 8 + j] += left[i][k] * right[k][j];
    }
    uint at = mh_row(mh_current->lane) * 8 + mh_column(mh_current->lane);
    d.e[0] = (TD)product[at];
    d.e[1] = (TD)product[at + 1];
}
template <class TD, class TA, class TB>
inline void simdgroup_multiply(thread simdgroup_matrix<TD>& d, simdgroup_matrix<TA> a, simdgroup_matrix<TB> b,
                               int line = __builtin_LINE()) {
    simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<TD, 8, 8>((TD)0.0f), line);
}
}  // namespace metal
