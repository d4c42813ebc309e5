// The network's output from tables: cubic interpolation on a uniform grid, lanes = samples.
//
// On the line a cell is its polynomial, c0 + c1 t + c2 t^2 + c3 t^3: one load of 16 bytes a sample, and a
// transpose. In the plane a grid holds the coefficients of cubic B-splines (de Boor 1978), two outputs side
// by side, node after node: a sample reads four nodes of four rows, 32 bytes each, which are summed over the
// rows before the transpose and over the columns after it.
#pragma once
#include "kernels.h"
#include "wide.h"

namespace df::DF_ISA {

using cpu::Grid;

// Eight floats: four nodes of two outputs. Samples have rows of their own, so they do not lie in lanes.
#if defined(__AVX2__)
typedef float v8 __attribute__((vector_size(32)));
DF_INLINE v8 load8(const float* p) { return _mm256_loadu_ps(p); }
DF_INLINE void store8(float* p, v8 a) { _mm256_storeu_ps(p, a); }
DF_INLINE v8 mul8(float w, v8 a) { return _mm256_set1_ps(w) * a; }
DF_INLINE v8 fma8(float w, v8 a, v8 b) { return _mm256_fmadd_ps(_mm256_set1_ps(w), a, b); }
#else
static_assert(W == 4, "two vectors are eight floats");
struct v8 {
    vf low, high;
};
DF_INLINE v8 load8(const float* p) { return {load(p), load(p + 4)}; }
DF_INLINE void store8(float* p, v8 a) {
    store(p, a.low);
    store(p + 4, a.high);
}
DF_INLINE v8 mul8(float w, v8 a) { return {splat(w) * a.low, splat(w) * a.high}; }
DF_INLINE v8 fma8(float w, v8 a, v8 b) {
    return {fma(splat(w), a.low, b.low), fma(splat(w), a.high, b.high)};
}
#endif

// Four floats of each lane, at base + index[lane], as four vectors of components in the order of the lanes.
DF_INLINE void load_transposed(const float* base, const int32_t* index, vf components[4]) {
    vf quads[4];
#pragma GCC unroll 4
    for (int m = 0; m < 4; ++m) {  // every fourth lane, for the transpose is of blocks of 4 x 4
        const auto quad = [&](int l) { return base + index[4 * l + m]; };
#if defined(__AVX512F__)
        __m512 q = _mm512_castps128_ps512(_mm_loadu_ps(quad(0)));
        q = _mm512_insertf32x4(q, _mm_loadu_ps(quad(1)), 1);
        q = _mm512_insertf32x4(q, _mm_loadu_ps(quad(2)), 2);
        quads[m] = _mm512_insertf32x4(q, _mm_loadu_ps(quad(3)), 3);
#elif defined(__AVX2__)
        const __m256 q = _mm256_castps128_ps256(_mm_loadu_ps(quad(0)));
        quads[m] = _mm256_insertf128_ps(q, _mm_loadu_ps(quad(1)), 1);
#else
        quads[m] = load(quad(0));
#endif
    }
    transpose4(quads, components);
}

// The cell and the place t in it, in [0, 1), of x along one axis; cell 0 where x is beside the grid or NaN.
struct Place {
    vi cell, inside;
    vf t;

    DF_INLINE Place(const Grid& g, int axis, vf x) {
        const vf p = fma(splat(g.scale[axis]), x, splat(g.shift[axis]));
        inside = (p >= splat(0.0f)) & (p < splat(float(g.cells[axis])));
        const vf q = select(inside, p, splat(0.0f));
        cell = to_signed(q);
        t = q - from_signed(cell);
    }
};

// 6 times the values at t of the four B-splines that are not zero there.
DF_INLINE void splines(vf t, vf w[4]) {
    const vf u = splat(1.0f) - t;
    const auto middle = [](vf v) {  // 4 - 6 v^2 + 3 v^3
        return fma(v * v, fma(splat(3.0f), v, splat(-6.0f)), splat(4.0f));
    };
    w[0] = u * u * u;
    w[1] = middle(t);
    w[2] = middle(u);
    w[3] = t * t * t;
}

// F of W samples, where they are inside; `table` is the grid's first float, of_class a lane's offset from it.
DF_INLINE vi lookup_line(const Grid& g, const float* table, vi of_class, vf x, vf& F) {
    const Place at(g, 0, x);
    alignas(64) int32_t index[W];
    *reinterpret_cast<vi*>(index) = of_class + (at.cell << 2);
    vf c[4];
    load_transposed(table, index, c);
    F = fma(at.t, fma(at.t, fma(at.t, c[3], c[2]), c[1]), c[0]);
    return at.inside;
}

DF_INLINE vi lookup_plane(const Grid& g, const float* table, vi of_class, vf x0, vf x1, vf& F0, vf& F1) {
    const Place column(g, 0, x0), row(g, 1, x1);
    const vi inside = column.inside & row.inside;
    const int32_t row_floats = 2 * (g.cells[0] + 3);
    alignas(64) int32_t index[W];
    alignas(64) float weight[4][W];
    // A sample that one axis finds outside has cell 0 there: still a cell of the grid.
    *reinterpret_cast<vi*>(index) =
        of_class + row.cell * vi(splat_bits(uint32_t(row_floats))) + (column.cell << 1);
    vf w[4];
    splines(row.t, w);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) store(weight[k], w[k]);
    alignas(64) float sum[W][8];
    static constexpr auto lanes = [] {
        struct {
            int32_t low[W], high[W];
        } r{};
        for (int l = 0; l < W; ++l) {
            r.low[l] = 8 * l;
            r.high[l] = 8 * l + 4;
        }
        return r;
    }();
#pragma GCC unroll 16
    for (int l = 0; l < W; ++l) {
        const float* at = table + index[l];
        v8 s = mul8(weight[0][l], load8(at));
#pragma GCC unroll 3
        for (int k = 1; k < 4; ++k) s = fma8(weight[k][l], load8(at + k * row_floats), s);
        store8(sum[l], s);
    }
    vf low[4], high[4];
    load_transposed(sum[0], lanes.low, low);
    load_transposed(sum[0], lanes.high, high);
    splines(column.t, w);
    F0 = fma(w[3], high[2], fma(w[2], high[0], fma(w[1], low[2], w[0] * low[0])));
    F1 = fma(w[3], high[3], fma(w[2], high[1], fma(w[1], low[3], w[0] * low[1])));
    return inside;
}

DF_INLINE bool every_lane(vi mask) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask(__m512i(mask)) == 0xffff;
#elif defined(__AVX2__)
    return _mm256_movemask_ps(__m256(mask)) == 0xff;
#else
    return (mask[0] & mask[1] & mask[2] & mask[3]) != 0;
#endif
}

// F of `count` samples, feature-major with S floats from one element to the next. Writes the indices of those
// outside of the grid, whose F is nothing, and returns how many they are. labels: (S), or null.
static int lookup(const cpu::LookupArgs& a) {
    const Grid& g = *a.grid;
    const float* table = a.values + g.offset;
    const vi class_floats = vi(splat_bits(uint32_t(g.class_floats)));
    vi of_class = a.label * class_floats;
    int outside = 0;
    for (int i = 0; i < a.count; i += W) {
        if (a.labels) of_class = *reinterpret_cast<const vi*>(a.labels + i) * class_floats;
        vf F0, F1;
        vi inside;
        if (a.dim == 1) {
            inside = lookup_line(g, table, of_class, load(a.x + i), F0);
        } else {
            inside = lookup_plane(g, table, of_class, load(a.x + i), load(a.x + a.S + i), F0, F1);
            store(a.F + a.S + i, F1);
        }
        store(a.F + i, F0);
        if (every_lane(inside)) continue;
        for (int l = 0; l < W && i + l < a.count; ++l)
            if (!inside[l]) a.outside[outside++] = i + l;
    }
    return outside;
}

}  // namespace df::DF_ISA
