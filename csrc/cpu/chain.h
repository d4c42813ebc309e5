// The whole reverse chain for a tile of samples that never leaves the cache: noise, network, update, row
// after row. run_rows is the algorithm; the paths run it on many samples side by side or on one (paths.h), or
// on a block of samples with tables in place of the network (table_path.h).
#pragma once
#include "table_path.h"

namespace df::DF_ISA {

// m = p_x x + p_F F of `i`-th floats, before the clamp.
DF_INLINE vf prediction(const StepRow& r, uint32_t terms, vf x, vf F) {
    vf m = splat(0.0f);
    if (terms & kTermPx) m = splat(r.p_x) * x;
    if (terms & kTermPF) m = fma(splat(r.p_F), F, m);
    return m;
}

// The row's update on `count` floats (a multiple of W); F is null where the row has no evaluation, and
// given_m holds m where the row has a dynamic threshold. m goes to h3's place, which the caller rotates
// to the front.
static void update(const StepRow& r, uint32_t terms, int count, float* x, const float* F, const float* z,
                   const float* given_m, float* const h[3]) {
    const vf clip = splat(r.clip), a = splat(r.a), b = splat(r.b), e = splat(r.e);
    const vf c1 = splat(r.c1), c2 = splat(r.c2), c3 = splat(r.c3), s = splat(r.s), zero = splat(0.0f);
    const bool has_m = terms & (kTermB | kTermPush);
    for (int i = 0; i < count; i += W) {
        const vf xv = load(x + i), Fv = F ? load(F + i) : zero;
        vf m = zero, next = terms & kTermA ? a * xv : zero;
        if (has_m) {
            m = given_m ? load(given_m + i) : prediction(r, terms, xv, Fv);
            if (!given_m && terms & kTermClip) m = max_keep_nan(-clip, min_keep_nan(clip, m));
            if (terms & kTermB) next = fma(b, m, next);
        }
        if (terms & kTermE) next = fma(e, Fv, next);
        if (terms & kTermC1) next = fma(c1, load(h[0] + i), next);
        if (terms & kTermC2) next = fma(c2, load(h[1] + i), next);
        if (terms & kTermC3) next = fma(c3, load(h[2] + i), next);
        if (z) next = fma(s, load(z + i), next);
        if (r.flags & kPush) store(h[2] + i, m);
        store(x + i, next);
    }
}

DF_INLINE void rotate_history(float* h[3]) {
    float* newest = h[2];
    h[2] = h[1];
    h[1] = h[0];
    h[0] = newest;
}

// ---- the algorithm box

// F(u) of one row, or null: with guidance F = F_u + s (F_c - F_u), F_u being of the null class and context,
// then rescaled; s = 1, in a row outside of the guided interval, is F_c.
template <class Path>
static const float* evaluate(Path& path, const StepRow& row) {
    const ProgramView& p = path.a.program;
    Workspace& w = path.w;
    const int floats = path.state_floats();
    if (!(row.flags & kEval)) return nullptr;
    const float* u = w.x;
    if (p.terms & kTermCin) {
        for (int i = 0; i < floats; i += W) store(w.slots[0][0] + i, splat(row.c_in) * load(w.x + i));
        u = w.slots[0][0];
    }
    const bool guided = p.branches == 2 && row.guidance != 1.0f;
    path.network(p.n_prologue, p.n_ops, row.table, u, guided ? 2 : 1, &row - p.rows < p.low_rows);
    const float* c = w.slots[0][p.out_slot];
    float* F = w.slots[1][p.out_slot];  // F_u, or F_c itself where the branches do not differ
    if (!guided || F == c) return c;
    for (int i = 0; i < floats; i += W)
        store(F + i, fma(path.guidance(row, i), load(c + i) - load(F + i), load(F + i)));
    if (row.rescale != 0.0f)
        path.each_sample([&](auto group, int at) {
            const auto factor = rescale_factor(group, row.rescale, c + at, F + at);
            for (int j = 0; j < group.n; ++j) group.put(F + at, j, factor * group.get(F + at, j));
        });
    return F;
}

// m of a row with a dynamic threshold q: clamp(p_x x + p_F F, -q, q) / q (Saharia et al. 2022)
template <class Path>
static const float* threshold(Path& path, const StepRow& row, const float* F) {
    Workspace& w = path.w;
    for (int i = 0; i < path.state_floats(); i += W)
        store(w.m + i, prediction(row, path.a.program.terms, load(w.x + i), F ? load(F + i) : splat(0.0f)));
    path.each_sample([&](auto group, int at) {
        float* m = w.m + at;
        const auto q = dynamic_threshold(group, row.quantile, row.clip, m);
        for (int j = 0; j < group.n; ++j) group.put(m, j, thresholded(group.get(m, j), q));
    });
    return w.m;
}

// Fixed coordinates take their value, at the noise level of the row that is about to evaluate x.
template <class Path>
static void fix(Path& path, float signal, float noise) {
    const ChainArgs& a = path.a;
    Workspace& w = path.w;
    for (int j = 0; j < a.program.dim; ++j) {
        if (!a.fixed_mask[j]) continue;
        for (int l = 0; l < path.S; ++l) {
            const int at = j * path.S + l;
            const float z = noise != 0.0f ? w.known_z[at] : 0.0f;
            w.x[at] = __builtin_fmaf(noise, z, signal * w.known[at]);
        }
    }
}

// What of the network reads neither x nor the step.
template <class Path>
static void prologue(Path& path) {
    const ChainArgs& a = path.a;
    const ProgramView& p = a.program;
    Workspace& w = path.w;
    if (p.n_context) path.read(a.context, a.context_stride, p.n_context, w.slots[0][p.context_slot]);
    if (p.null_context) path.read_one(p.null_context, p.n_context, w.slots[1][p.context_slot]);
    path.network(0, p.n_prologue, 0, w.x, p.branches, false);
}

template <class Path>
static void begin(Path& path) {
    const ChainArgs& a = path.a;
    const ProgramView& p = a.program;
    Workspace& w = path.w;
    const int floats = path.state_floats();
    if (a.x_T) {
        path.read(a.x_T, p.dim, p.dim, w.x);
    } else {  // drawn into the output's slot, which has room for whole quads (and vectors of them)
        path.normals(uint32_t(kPurposeInitial) << 28, w.slots[0][p.out_slot]);
        for (int i = 0; i < floats; i += W) store(w.x + i, load(w.slots[0][p.out_slot] + i));
    }
    if (w.h[0])
        for (float* h : w.h)
            for (int i = 0; i < floats; i += W) store(h + i, splat(0.0f));
    if (a.fixed_mask) path.read(a.fixed, a.fixed_stride, p.dim, w.known);
    prologue(path);
}

template <class Path>
static bool run_rows(Path&& path) {
    const ChainArgs& a = path.a;
    const ProgramView& p = a.program;
    Workspace& w = path.w;
    const int64_t state = a.n * p.dim;  // floats of all samples
    begin(path);
    if (a.trajectory) path.write(w.x, a.trajectory);

    uint32_t drawn = ~0u;
    for (int i = 0; i < p.n_rows; ++i) {
        if (!a.keep_going(a.watcher)) return false;
        const StepRow& row = p.rows[i];
        if (a.fixed_mask && (row.flags & kEval)) {
            const bool noisy = !a.fixed_clean && row.noise != 0.0f;
            if (noisy) path.normals(uint32_t(i) | uint32_t(kPurposeForward) << 28, w.known_z);
            fix(path, a.fixed_clean ? 1.0f : row.signal, noisy ? row.noise : 0.0f);
        }
        const float* F = evaluate(path, row);
        const float* z = nullptr;  // fma(0, z, x) is x: rows with s = 0 draw nothing
        if (row.s != 0.0f && a.noise) {
            path.read(a.noise + i * state, p.dim, p.dim, w.z);
            z = w.z;
        } else if (row.s != 0.0f) {
            uint32_t component;
            const uint32_t word = step_word(uint32_t(i), kPurposeStep, uint32_t(p.dim), component);
            if (word != drawn) path.normals(word, w.z);
            drawn = word;
            z = w.z + component * path.S;
        }
        const float* m = row.quantile != 0.0f ? threshold(path, row, F) : nullptr;
        update(row, p.terms, path.state_floats(), w.x, F, z, m, w.h);
        if (row.flags & kPush) rotate_history(w.h);
        if (a.fixed_mask && i + 1 == p.n_rows) fix(path, 1.0f, 0.0f);
        if (a.trajectory) path.write(w.x, a.trajectory + (i + 1) * state);
    }
    if (!a.keep_going(a.watcher)) return false;  // within the last row
    path.write(w.x, a.out);
    return true;
}

// ---- which path

// The most samples that a tile of the program has.
static int tile_samples(const ProgramView& p) { return (p.wide ? Wide::kVectors : Usual::kVectors) * W; }

static int64_t tile_scratch_floats(const ChainArgs& a) {
    Workspace w;
    const int64_t tile = w.layout(a, nullptr, tile_samples(a.program)), row = w.layout(a, nullptr, 1);
    return (tile > row ? tile : row) + 4 * W;
}

static int64_t chain_scratch_floats(const ChainArgs& a) {
    return a.tables ? TablePath(a, nullptr, 0, a.tables->block).layout(nullptr) : tile_scratch_floats(a);
}

// Cycles of `count` samples on the row path against cycles of a one-vector tile: a lone vector of outputs
// waits out the fma latency of 4, four vectors or more keep the unit busy; 5/4 is what the rest of a row
// costs (2-64-64-2, measured).
static bool rows_are_faster(const ProgramView& p, int count) {
    int64_t row = 0, tile = 0;
    for (int i = 0; i < p.n_ops; ++i) {
        if (p.ops[i].kind != OpKind::kLinear) continue;
        const int vectors = p.ops[i].n_out_padded / W;
        row += int64_t(p.ops[i].n_in) * (vectors / 4 * 4 + vectors % 4 * 4);
        tile += int64_t(p.ops[i].n_in) * p.ops[i].n_out;
    }
    return 5 * count * row < 4 * tile;
}

// run(path) for samples that fit into a tile of the shape, on the narrowest that holds them.
template <class Shape, int V = 1, class Run>
static bool on_tile(const ChainArgs& a, float* scratch, int64_t first, int count, Run run) {
    if constexpr (V < Shape::kVectors)
        if (count > V * W) return on_tile<Shape, V + 1>(a, scratch, first, count, run);
    return run(TilePath<Shape::kBlock, V>(a, scratch, first, count));
}

// run(path) for the samples tile by tile, or one by one where that is faster, while it is true.
template <class Run>
static bool on_path(const ChainArgs& a, float* scratch, int64_t first, int count, Run run) {
    const int tile = tile_samples(a.program);
    for (; count > 0; first += tile, count -= tile) {
        if (count < W && rows_are_faster(a.program, count)) {
            for (int i = 0; i < count; ++i)
                if (!run(RowPath(a, scratch, first + i))) return false;
            return true;
        }
        const int m = count < tile ? count : tile;
        if (!(a.program.wide ? on_tile<Wide>(a, scratch, first, m, run)
                             : on_tile<Usual>(a, scratch, first, m, run)))
            return false;
    }
    return true;
}

static bool chain(const ChainArgs& a, float* scratch, int64_t first, int count) {
    if (a.tables) return run_rows(TablePath(a, scratch, first, count));
    return on_path(a, scratch, first, count, [](auto&& path) { return run_rows(path); });
}

static bool network_at(const ChainArgs& a, float* scratch, int row, int64_t first, int count) {
    const ProgramView& p = a.program;
    return on_path(a, scratch, first, count, [&](auto&& path) {
        if (!a.keep_going(a.watcher)) return false;
        path.read(a.x_T, p.dim, p.dim, path.w.x);
        prologue(path);
        path.write(evaluate(path, p.rows[row]), a.out);
        return true;
    });
}

}  // namespace df::DF_ISA
