// The chain on tables: a block of samples takes a row together, so that the row's table is in the cache for
// all of them, where the tiles of the other paths take all rows one after the other.
#pragma once
#include "lookup.h"
#include "paths.h"

namespace df::DF_ISA {

// The network of a row at given points, on tiles or the few-sample path (chain.h); out: (count, dim). False
// if stopped.
static bool network_at(const ChainArgs& a, float* scratch, int row, int64_t first, int count);
static int64_t tile_scratch_floats(const ChainArgs& a);

struct TablePath {
    static constexpr int kVectors = Usual::kVectors;  // side by side, for the noise
    // Samples outside that the network takes at a time: whole tiles of either shape.
    static constexpr int kPoints = Usual::kVectors * Wide::kVectors * W;
    const ChainArgs& a;
    const int64_t first;  // sample of lane 0, relative to start
    const int count;      // lanes in use
    const int S;          // floats from one element to the next
    const RoundKeys keys;
    Workspace w;
    int32_t *outside, *labels;
    float *points, *outputs, *scratch;

    TablePath(const ChainArgs& args, float* base, int64_t first_, int count_)
        : a(args), first(first_), count(count_), S(whole(count_)), keys(args.seed) {
        layout(base);
        for (int l = 0; labels && l < S; ++l) labels[l] = a.labels[first + (l < count ? l : 0)];
    }

    static int whole(int samples) { return (samples + kVectors * W - 1) / (kVectors * W) * kVectors * W; }

    // Lays the memory out from `base`; with base null it only counts. Returns the floats needed.
    int64_t layout(float* base) {
        ChainArgs state = a;
        state.program.n_slots = state.program.n_ops = 0;  // the network's own memory is that of a tile, below
        int64_t used = w.layout(state, base, S);
        const auto take = [&](int64_t floats) {
            float* at = base ? base + used : nullptr;
            used += (floats + 15) / 16 * 16;
            return at;
        };
        w.slots[0][a.program.out_slot] = take(4 * S);  // F, and once the noise of x_T
        outside = reinterpret_cast<int32_t*>(take(S));
        labels = a.labels ? reinterpret_cast<int32_t*>(take(S)) : nullptr;
        points = take(2 * kPoints);
        outputs = take(2 * kPoints);
        scratch = take(tile_scratch_floats(a));
        return used;
    }

    int state_floats() const { return a.program.dim * S; }

    void read(const float* rows, int64_t stride, int width, float* x) const {
        rows += first * stride;
        for (int j = 0; j < width; ++j)
            for (int l = 0; l < S; ++l) x[j * S + l] = l < count ? rows[l * stride + j] : 0.0f;
    }

    void write(const float* x, float* rows) const {
        rows += first * a.program.dim;
        for (int l = 0; l < count; ++l)
            for (int j = 0; j < a.program.dim; ++j) rows[int64_t(l) * a.program.dim + j] = x[j * S + l];
    }

    void normals(uint32_t word, float* z) const {
        for (int l = 0; l < S; l += kVectors * W)
            tile_normals<kVectors>(keys, a.start + uint64_t(first + l), word, a.program.dim, z + l, S);
    }

    template <class Each>
    void each_sample(Each each) const {
        for (int v = 0; v < S; v += W) each(LaneGroup{a.program.dim, S}, v);
    }

    // F of the samples outside of the grid, by the network itself; nothing where that is stopped, as run_rows
    // then is before it writes a sample.
    void evaluate_outside(int row, int n, float* F) {
        const int dim = a.program.dim;
        alignas(64) int32_t point_labels[kPoints];
        ChainArgs exact = a;
        exact.x_T = points;
        exact.out = outputs;
        if (labels) exact.labels = point_labels;
        for (int at = 0; at < n; at += kPoints) {
            const int m = n - at < kPoints ? n - at : kPoints;
            for (int i = 0; i < m; ++i) {
                const int l = outside[at + i];
                for (int j = 0; j < dim; ++j) points[i * dim + j] = w.x[j * S + l];
                if (labels) point_labels[i] = labels[l];
            }
            if (!network_at(exact, scratch, row, 0, m)) return;
            for (int i = 0; i < m; ++i)
                for (int j = 0; j < dim; ++j) F[j * S + outside[at + i]] = outputs[i * dim + j];
        }
    }
};

static void prologue(TablePath&) {}  // the points outside have their own

// F of one row, or null: of the whole row, guidance included.
static const float* evaluate(TablePath& path, const StepRow& row) {
    const ChainArgs& a = path.a;
    if (!(row.flags & kEval)) return nullptr;
    float* F = path.w.slots[0][a.program.out_slot];
    const int i = int(&row - a.program.rows);
    const cpu::Grid& grid = a.tables->grids[a.tables->of_row[i]];
    const int n = lookup({&grid, a.tables->values, path.labels, a.label, path.w.x, F, path.outside,
                          a.program.dim, path.S, path.count});
    if (n) path.evaluate_outside(i, n, F);
    return F;
}

}  // namespace df::DF_ISA
