// The whole reverse chain for a tile of samples that never leaves the cache: noise, network, update, row
// after row.
//
// run_rows is the algorithm; two paths run it with the same bits: TilePath (lanes = samples, V vectors of
// them) and RowPath (lanes = outputs, one sample), which is faster when fewer samples are left than fill a
// vector.
#pragma once
#include "statistics.h"
#include "wide.h"

namespace df::DF_ISA {

using cpu::ChainArgs;
using cpu::ProgramView;

DF_INLINE bool is_joint(const PackedOp& op) {
    return op.kind == OpKind::kTable && TableFunction(op.function) == TableFunction::kJoint;
}

// Scratch of one tile with S lanes (tile path) or one sample with padded vectors (row path).
struct Workspace {
    float *x, *F_cond, *h[3], *z, *init, *slots[kMaxOps + 1], *lane_init[kMaxOps];

    // Lays the buffers out from `base`; with base null it only counts. Returns the floats needed.
    int64_t layout(const ProgramView& p, float* base, int S, bool lanes_have_labels) {
        int64_t used = 0;
        const auto take = [&](bool wanted, int64_t rows) -> float* {
            if (!wanted) return nullptr;
            float* at = base ? base + used : nullptr;
            used += (rows * S + 15) / 16 * 16;
            return at;
        };
        const int64_t dim = S == 1 ? p.dim_padded : p.dim;
        x = take(true, dim);
        z = take(p.terms & kTermS, S == 1 ? p.dim_padded + 4 * W : (p.dim + 3) / 4 * 4);
        F_cond = take(p.branches == 2, dim);
        for (int i = 0; i < 3; ++i) h[i] = take(p.terms & (kTermPush | kTermC1 | kTermC2 | kTermC3), dim);
        for (int i = 0; i < p.n_slots; ++i)
            slots[i] = take(i > 0 || (p.terms & kTermCin), p.slot_width[i] + (S == 1 ? 4 * W : 0));
        int widest = 0;
        for (int i = 0; i < p.n_ops; ++i) {
            const PackedOp& op = p.ops[i];
            widest = op.n_out_padded > widest ? op.n_out_padded : widest;
            const bool per_lane = op.class_table && lanes_have_labels && S > 1;
            lane_init[i] = take(per_lane && !is_joint(op), op.n_out);
        }
        init = base ? base + used : nullptr;
        return used + widest;
    }
};

// What of each op's start value is the same for all lanes: (bias + step table) + class table, added in
// this order. `label` < 0 leaves the class out (lane_init adds it per lane).
DF_INLINE const float* uniform_init(const PackedOp& l, uint32_t table, int label, float* scratch) {
    const float* step = l.step_table ? l.step_table + int64_t(table) * l.n_out_padded : nullptr;
    const float* classes =
        l.class_table && label >= 0 ? l.class_table + int64_t(label) * l.n_out_padded : nullptr;
    if (!classes && !(l.bias && step)) {
        if (l.bias || step) return l.bias ? l.bias : step;
        for (int j = 0; j < l.n_out_padded; j += W) store(scratch + j, splat(0.0f));
        return scratch;
    }
    for (int j = 0; j < l.n_out_padded; j += W) {
        vf a = l.bias ? load(l.bias + j) : load(step ? step + j : classes + j);
        if (l.bias && step) a += load(step + j);
        if (classes && (l.bias || step)) a += load(classes + j);
        store(scratch + j, a);
    }
    return scratch;
}

// The row's update on `count` floats (a multiple of W); F is null where the row has no evaluation.
// m goes to h3's place, which the caller rotates to the front.
static void update(const StepRow& r, uint32_t terms, int count, float* x, const float* F, const float* z,
                   float* const h[3]) {
    const vf px = splat(r.p_x), pF = splat(r.p_F), clip = splat(r.clip), a = splat(r.a), b = splat(r.b),
             e = splat(r.e);
    const vf c1 = splat(r.c1), c2 = splat(r.c2), c3 = splat(r.c3), s = splat(r.s), zero = splat(0.0f);
    const bool has_m = terms & (kTermB | kTermPush);
    for (int i = 0; i < count; i += W) {
        const vf xv = load(x + i), Fv = F ? load(F + i) : zero;
        vf m = zero, next = terms & kTermA ? a * xv : zero;
        if (has_m) {
            if (terms & kTermPx) m = px * xv;
            if (terms & kTermPF) m = fma(pF, Fv, m);
            if (terms & kTermClip) m = max_keep_nan(-clip, min_keep_nan(clip, m));
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

// Sample indices first .. first + W - 1 as counter words, with the carry into the high word.
DF_INLINE void sample_words(uint64_t first, vu& lo, vu& hi) {
    const vu base = splat_bits(uint32_t(first));
    lo = base + lane_index();
    hi = splat_bits(uint32_t(first >> 32)) + (vu(lo < base) & splat_bits(1));
}

// ---- lanes = samples: V vectors of them, feature-major

template <int V>
struct TilePath {
    static constexpr int S = V * W;  // floats from one element to the next
    const ChainArgs& a;
    const int64_t first;  // sample of lane 0, relative to start
    const int count;      // lanes in use; the others compute what nobody reads
    const RoundKeys keys;
    Workspace w;

    TilePath(const ChainArgs& args, float* scratch, int64_t first_, int count_)
        : a(args), first(first_), count(count_), keys(args.seed) {
        w.layout(a.program, scratch, S, a.labels);
        if (a.labels) gather_lane_init();
    }

    int state_floats() const { return a.program.dim * S; }

    void read(const float* rows, float* x) const {
        for (int j = 0; j < a.program.dim; ++j)
            for (int l = 0; l < S; ++l)
                x[j * S + l] = l < count ? rows[int64_t(l) * a.program.dim + j] : 0.0f;
    }

    void write(const float* x, float* rows) const {
        for (int l = 0; l < count; ++l)
            for (int j = 0; j < a.program.dim; ++j) rows[int64_t(l) * a.program.dim + j] = x[j * S + l];
    }

    void normals(uint32_t word, float* z) const {
        using L = WideLanes<V>;
        typename L::U lo, hi;
        for (int v = 0; v < V; ++v) sample_words(a.start + uint64_t(first + v * W), lo.v[v], hi.v[v]);
        for (int q = 0; 4 * q < a.program.dim; ++q) {
            typename L::F n[4];
            normal4<L>(keys, L::splat_bits(uint32_t(q)), word, lo, hi, n);
            for (int i = 0; i < 4; ++i)
                for (int v = 0; v < V; ++v) store(z + (4 * q + i) * S + v * W, n[i].v[v]);
        }
    }

    void network(const StepRow& row, const float* u, bool null_class) {
        const bool per_lane = a.labels && !null_class;
        const int label = per_lane ? -1 : null_class ? a.program.n_classes - 1 : a.label;
        for (int i = 0; i < a.program.n_ops; ++i) {
            const PackedOp& op = a.program.ops[i];
            const float* x = op.src ? w.slots[op.src] : u;
            float* y = w.slots[op.dst];
            const float* lane_init = per_lane ? w.lane_init[i] : nullptr;
            if (op.kind == OpKind::kLinear)
                linear_tile<V>(op, uniform_init(op, row.table, label, w.init),
                               op.extra ? w.slots[op.extra] : lane_init, x, y);
            else if (is_joint(op) && per_lane)
                gather_rows(op, op.class_table + joint_offset(op, row.table), y);
            else if (op.kind == OpKind::kTable)
                spread(op, table_init(op, row.table, label), lane_init, y);
            else
                other_op<S>(op, x, op.extra ? w.slots[op.extra] : u, y);
        }
    }

    const float* table_init(const PackedOp& op, uint32_t table, int label) {
        if (!is_joint(op)) return uniform_init(op, table, label, w.init);
        return op.class_table + joint_offset(op, table) + int64_t(label) * op.n_out_padded;
    }

    // y[j][lane] = rows[label of lane][j]
    void gather_rows(const PackedOp& op, const float* rows, float* y) const {
        for (int j = 0; j < op.n_out; ++j)
            for (int s = 0; s < S; ++s)
                y[j * S + s] = rows[int64_t(a.labels[first + (s < count ? s : 0)]) * op.n_out_padded + j];
    }

    int64_t joint_offset(const PackedOp& op, uint32_t table) const {
        return int64_t(table) * a.program.n_classes * op.n_out_padded;
    }

    static void spread(const PackedOp& op, const float* init, const float* lane_init, float* y) {
        for (int j = 0; j < op.n_out; ++j)
            for (int v = 0; v < S; v += W) {
                vf value = splat(init[j]);
                if (lane_init) value += load(lane_init + j * S + v);
                store(y + j * S + v, value);
            }
    }

    // Guidance scales for the lanes of float i of the state.
    vf guidance(const StepRow& row, int i) const {
        if (!a.guidance) return splat(row.guidance);
        float scale[W];
        for (int l = 0; l < W; ++l) scale[l] = a.guidance[first + (i % S + l < count ? i % S + l : 0)];
        return load(scale);
    }

    void gather_lane_init() {  // the class tables' rows of each lane, once per chain
        for (int i = 0; i < a.program.n_ops; ++i)
            if (w.lane_init[i]) gather_rows(a.program.ops[i], a.program.ops[i].class_table, w.lane_init[i]);
    }
};

// ---- lanes = outputs: one sample

struct RowPath {
    static constexpr int S = 1;
    const ChainArgs& a;
    const int64_t first;
    const RoundKeys keys;
    Workspace w;

    RowPath(const ChainArgs& args, float* scratch, int64_t first_) : a(args), first(first_), keys(args.seed) {
        const int64_t floats = w.layout(a.program, scratch, 1, false);
        for (int64_t i = 0; i < floats; i += W) store(scratch + i, splat(0.0f));  // padding must be finite
    }

    int state_floats() const { return a.program.dim_padded; }
    void read(const float* rows, float* x) const { memcpy(x, rows, size_t(a.program.dim) * sizeof(float)); }
    void write(const float* x, float* rows) const { memcpy(rows, x, size_t(a.program.dim) * sizeof(float)); }

    void normals(uint32_t word, float* z) const {
        const int quads = (a.program.dim + 3) / 4;
        const uint64_t sample = a.start + uint64_t(first);
        const uint32_t lo = uint32_t(sample), hi = uint32_t(sample >> 32);
        if (quads < 3) {  // a scalar call each costs less than a vector of mostly unused lanes
            for (int q = 0; q < quads; ++q) normal4<ScalarLanes>(keys, uint32_t(q), word, lo, hi, z + 4 * q);
            return;
        }
        for (int q = 0; q < quads; q += W) {
            vf n[4];
            normal4<VectorLanes>(keys, splat_bits(uint32_t(q)) + lane_index(), word, splat_bits(lo),
                                 splat_bits(hi), n);
            for (int l = 0; l < W; ++l)
                for (int i = 0; i < 4; ++i) z[4 * (q + l) + i] = n[i][l];
        }
    }

    void network(const StepRow& row, const float* u, bool null_class) {
        const int label = null_class ? a.program.n_classes - 1 : a.labels ? a.labels[first] : a.label;
        for (int i = 0; i < a.program.n_ops; ++i) {
            const PackedOp& op = a.program.ops[i];
            const float* x = op.src ? w.slots[op.src] : u;
            float* y = w.slots[op.dst];
            const int64_t joint_row = int64_t(row.table) * a.program.n_classes + label;
            const float* init = is_joint(op) ? op.class_table + joint_row * op.n_out_padded
                                             : uniform_init(op, row.table, label, w.init);
            if (op.kind == OpKind::kLinear)
                linear_row(op, op.extra ? plus(init, w.slots[op.extra], op.n_out_padded) : init, x, y);
            else if (op.kind == OpKind::kTable)
                memcpy(y, init, size_t(op.n_out_padded) * sizeof(float));
            else
                other_op<1>(op, x, op.extra ? w.slots[op.extra] : u, y);
        }
    }

    vf guidance(const StepRow& row, int) const {
        return splat(a.guidance ? a.guidance[first] : row.guidance);
    }

    const float* plus(const float* init, const float* value, int count) const {
        for (int i = 0; i < count; i += W) store(w.init + i, load(init + i) + load(value + i));
        return w.init;
    }
};

// ---- the algorithm box

// F(u) of one row, or null: with guidance F = F_u + s (F_c - F_u), the null class being the last; s = 1,
// in a row outside of the guided interval, is F_c.
template <class Path>
static const float* evaluate(Path& path, const StepRow& row) {
    const ProgramView& p = path.a.program;
    Workspace& w = path.w;
    const int floats = path.state_floats();
    if (!(row.flags & kEval)) return nullptr;
    const float* u = w.x;
    if (p.terms & kTermCin) {
        for (int i = 0; i < floats; i += W) store(w.slots[0] + i, splat(row.c_in) * load(w.x + i));
        u = w.slots[0];
    }
    path.network(row, u, false);
    float* F = w.slots[p.out_slot];
    if (p.branches == 2 && row.guidance != 1.0f) {
        for (int i = 0; i < floats; i += W) store(w.F_cond + i, load(F + i));
        path.network(row, u, true);
        for (int i = 0; i < floats; i += W)
            store(F + i, fma(path.guidance(row, i), load(w.F_cond + i) - load(F + i), load(F + i)));
    }
    return F;
}

template <class Path>
static bool run_rows(Path&& path) {
    const ChainArgs& a = path.a;
    const ProgramView& p = a.program;
    Workspace& w = path.w;
    const int64_t offset = path.first * p.dim;  // of the tile's first sample in an (n, dim) array
    const int floats = path.state_floats();

    if (a.x_T) {
        path.read(a.x_T + offset, w.x);
    } else {  // drawn into the output's slot, which has room for whole quads (and vectors of them)
        path.normals(uint32_t(kPurposeInitial) << 28, w.slots[p.out_slot]);
        for (int i = 0; i < floats; i += W) store(w.x + i, load(w.slots[p.out_slot] + i));
    }
    if (w.h[0])
        for (float* h : w.h)
            for (int i = 0; i < floats; i += W) store(h + i, splat(0.0f));
    if (a.trajectory) path.write(w.x, a.trajectory + offset);

    uint32_t drawn = ~0u;
    for (int i = 0; i < p.n_rows; ++i) {
        if (!a.keep_going(a.context)) return false;
        const StepRow& row = p.rows[i];
        const float* F = evaluate(path, row);
        const float* z = nullptr;  // fma(0, z, x) is x: rows with s = 0 draw nothing
        if (row.s != 0.0f && a.noise) {
            path.read(a.noise + i * a.n * p.dim + offset, w.z);
            z = w.z;
        } else if (row.s != 0.0f) {
            uint32_t component;
            const uint32_t word = step_word(uint32_t(i), kPurposeStep, uint32_t(p.dim), component);
            if (word != drawn) path.normals(word, w.z);
            drawn = word;
            z = w.z + component * path.S;
        }
        update(row, p.terms, floats, w.x, F, z, w.h);
        if (row.flags & kPush) rotate_history(w.h);
        if (a.trajectory) path.write(w.x, a.trajectory + (i + 1) * a.n * p.dim + offset);
    }
    path.write(w.x, a.out + offset);
    return true;
}

// ---- which path

static int64_t chain_scratch_floats(const ProgramView& p, bool lanes_have_labels) {
    Workspace w;
    const int64_t tile = w.layout(p, nullptr, kTile, lanes_have_labels), row = w.layout(p, nullptr, 1, false);
    return (tile > row ? tile : row) + 4 * W;
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

static bool chain(const ChainArgs& a, float* scratch, int64_t first, int count) {
    if (count < W && rows_are_faster(a.program, count)) {
        for (int i = 0; i < count; ++i)
            if (!run_rows(RowPath(a, scratch, first + i))) return false;
        return true;
    }
    if (count <= W) return run_rows(TilePath<1>(a, scratch, first, count));
    if (count <= 2 * W) return run_rows(TilePath<2>(a, scratch, first, count));
    return run_rows(TilePath<3>(a, scratch, first, count));
}

}  // namespace df::DF_ISA
