// The two ways to run a chain, with the same bits: TilePath (lanes = samples, V vectors of them) and RowPath
// (lanes = outputs, one sample), which is faster when fewer samples are left than fill a vector.
//
// A guided plan has two branches, the sample's own class and context, and the null ones. They go through the
// network side by side, op after op: what does not differ between them is computed once, and a block of
// weights is read once for both.
#pragma once
#include "workspace.h"

namespace df::DF_ISA {

// What tile_normals (below) does for samples in which the low word of their index overflows, one in 2^32:
// lane by lane.
static __attribute__((noinline)) void normals_with_carry(const RoundKeys& keys, uint64_t sample, int count,
                                                         uint32_t word, int dim, float* z, int S) {
    for (int l = 0; l < count; ++l, ++sample)
        for (int q = 0; 4 * q < dim; ++q) {
            float n[4];
            normal4<ScalarLanes>(keys, uint32_t(q), word, uint32_t(sample), uint32_t(sample >> 32), n);
            for (int i = 0; i < 4; ++i) z[(4 * q + i) * S + l] = n[i];
        }
}

// Normals of V vectors of samples from index `sample` on, whole quads of elements: z[element * S + lane]
template <int V>
DF_INLINE void tile_normals(const RoundKeys& keys, uint64_t sample, uint32_t word, int dim, float* z, int S) {
    using L = WideLanes<V>;
    if (uint32_t(sample) > UINT32_MAX - V * W)
        return normals_with_carry(keys, sample, V * W, word, dim, z, S);
    typename L::U lo;
    for (int v = 0; v < V; ++v) lo.v[v] = splat_bits(uint32_t(sample) + v * W) + lane_index();
    for (int q = 0; 4 * q < dim; ++q) {
        typename L::F n[4];
        normal4_of_samples<L>(keys, uint32_t(q), word, lo, uint32_t(sample >> 32), n);
        for (int i = 0; i < 4; ++i)
            for (int v = 0; v < V; ++v) store(z + (4 * q + i) * S + v * W, n[i].v[v]);
    }
}

// ---- lanes = samples: V vectors of them, feature-major; weights in blocks of R outputs

template <int R, int V>
struct TilePath {
    static constexpr int S = V * W;  // floats from one element to the next
    const ChainArgs& a;
    const int64_t first;  // sample of lane 0, relative to start
    const int count;      // lanes in use; the others compute what nobody reads
    const RoundKeys keys;
    Workspace w;

    TilePath(const ChainArgs& args, float* scratch, int64_t first_, int count_)
        : a(args), first(first_), count(count_), keys(args.seed) {
        w.layout(a, scratch, S);
        if (a.labels) gather_lane_init();
    }

    int state_floats() const { return a.program.dim * S; }

    // The tile's rows of an (n, width) array; with stride 0 one row for all.
    void read(const float* rows, int64_t stride, int width, float* x) const {
        rows += first * stride;
        for (int j = 0; j < width; ++j)
            for (int l = 0; l < S; ++l) x[j * S + l] = l < count ? rows[l * stride + j] : 0.0f;
    }

    void read_one(const float* row, int width, float* x) const {
        for (int j = 0; j < width; ++j)
            for (int v = 0; v < S; v += W) store(x + j * S + v, splat(row[j]));
    }

    void write(const float* x, float* rows) const {
        rows += first * a.program.dim;
        for (int l = 0; l < count; ++l)
            for (int j = 0; j < a.program.dim; ++j) rows[int64_t(l) * a.program.dim + j] = x[j * S + l];
    }

    void normals(uint32_t word, float* z) const {
        tile_normals<V>(keys, a.start + uint64_t(first), word, a.program.dim, z, S);
    }

    // Ops [from, to) for one branch, or for both side by side; low: with pairs of bfloat16 where there are
    // some.
    void network(int from, int to, uint32_t table, const float* u, int branches, bool low) {
        for (int i = from; i < to; ++i) {
            const PackedOp& op = a.program.ops[i];
            const int count = op.differs ? branches : 1;
            LinearBranch linear[2];
            for (int b = 0; b < count; ++b) {
                const bool per_lane = a.labels && b == 0;
                const int label = per_lane ? -1 : b ? a.program.n_classes - 1 : a.label;
                const float* x = op.src ? w.slots[b][op.src] : u;
                float* y = w.slots[b][op.dst];
                const float* lane_init = per_lane ? w.lane_init[i] : nullptr;
                if (op.kind == OpKind::kLinear)
                    linear[b] = {uniform_init(op, table, label, w.init[b]),
                                 op.extra ? w.slots[b][op.extra] : lane_init, x, y, w.pairs[b]};
                else if (is_joint(op) && per_lane)
                    gather_rows(op, op.class_table + joint_offset(op, table), y);
                else if (op.kind == OpKind::kTable)
                    spread(op, table_init(op, table, label, w.init[b]), lane_init, y);
                else
                    other_op<S>(op, x, op.extra ? w.slots[b][op.extra] : u, y);
            }
            if (op.kind == OpKind::kLinear) linear_tile<R, V>(op, linear, count, low);
        }
    }

    const float* table_init(const PackedOp& op, uint32_t table, int label, float* scratch) const {
        if (!is_joint(op)) return uniform_init(op, table, label, scratch);
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

    // each(group, offset) for every vector of samples of a state buffer
    template <class Each>
    void each_sample(Each each) const {
        for (int v = 0; v < S; v += W) each(LaneGroup{a.program.dim, S}, v);
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
    bool backwards = false;

    RowPath(const ChainArgs& args, float* scratch, int64_t first_) : a(args), first(first_), keys(args.seed) {
        const int64_t floats = w.layout(a, scratch, 1);
        for (int64_t i = 0; i < floats; i += W) store(scratch + i, splat(0.0f));  // padding must be finite
    }

    int state_floats() const { return a.program.dim_padded; }
    void read(const float* rows, int64_t stride, int width, float* x) const {
        memcpy(x, rows + first * stride, size_t(width) * sizeof(float));
    }
    void read_one(const float* row, int width, float* x) const {
        memcpy(x, row, size_t(width) * sizeof(float));
    }
    void write(const float* x, float* rows) const {
        memcpy(rows + first * a.program.dim, x, size_t(a.program.dim) * sizeof(float));
    }

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

    void network(int from, int to, uint32_t table, const float* u, int branches, bool low) {
        backwards = !backwards;
        for (int i = from; i < to; ++i) {
            const PackedOp& op = a.program.ops[i];
            for (int b = 0; b < (op.differs ? branches : 1); ++b) {
                const int label = b ? a.program.n_classes - 1 : a.labels ? a.labels[first] : a.label;
                const float* x = op.src ? w.slots[b][op.src] : u;
                float* y = w.slots[b][op.dst];
                const int64_t joint_row = int64_t(table) * a.program.n_classes + label;
                const float* init = is_joint(op) ? op.class_table + joint_row * op.n_out_padded
                                                 : uniform_init(op, table, label, w.init[b]);
                if (op.kind == OpKind::kLinear)
                    linear_row(op, op.extra ? plus(init, w.slots[b][op.extra], op.n_out_padded) : init, x,
                               w.pairs[b], y, backwards, low);
                else if (op.kind == OpKind::kTable)
                    memcpy(y, init, size_t(op.n_out_padded) * sizeof(float));
                else
                    other_op<1>(op, x, op.extra ? w.slots[b][op.extra] : u, y);
            }
        }
    }

    vf guidance(const StepRow& row, int) const {
        return splat(a.guidance ? a.guidance[first] : row.guidance);
    }

    const float* plus(const float* init, const float* value, int count) const {
        for (int i = 0; i < count; i += W) store(w.init[0] + i, load(init + i) + load(value + i));
        return w.init[0];
    }

    template <class Each>
    void each_sample(Each each) const {
        each(RowGroup{a.program.dim}, 0);
    }
};

}  // namespace df::DF_ISA
