// The memory of one tile, and what of a layer's start value is the same for all samples.
#pragma once
#include "statistics.h"
#include "tile_ops.h"
#include "wide.h"

namespace df::DF_ISA {

using cpu::ChainArgs;
using cpu::ProgramView;

DF_INLINE bool is_joint(const PackedOp& op) {
    return op.kind == OpKind::kTable && TableFunction(op.function) == TableFunction::kJoint;
}

// Scratch of one tile with S lanes (tile path) or one sample with padded vectors (row path).
// slots[b]: the values of branch b; slots[0] alone where the branches do not differ. m: where a row has a
// dynamic threshold. known, known_z: the fixed coordinates and their noise. pairs[b]: of the layer at hand,
// in the bfloat16 tier.
struct Workspace {
    uint32_t* pairs[2];
    float *x, *h[3], *z, *m, *known, *known_z, *init[2], *slots[2][kMaxOps + 2], *lane_init[kMaxOps];

    // Lays the buffers out from `base`; with base null it only counts. Returns the floats needed.
    int64_t layout(const ChainArgs& a, float* base, int S) {
        const ProgramView& p = a.program;
        int64_t used = 0;
        const auto take = [&](bool wanted, int64_t rows) -> float* {
            if (!wanted) return nullptr;
            float* at = base ? base + used : nullptr;
            used += (rows * S + 15) / 16 * 16;
            return at;
        };
        const int64_t dim = S == 1 ? p.dim_padded : p.dim;
        const int64_t whole_quads = S == 1 ? p.dim_padded + 4 * W : (p.dim + 3) / 4 * 4;
        x = take(true, dim);
        z = take(p.terms & kTermS, whole_quads);
        m = take(p.thresholds, dim);
        known = take(a.fixed_mask, dim);
        known_z = take(a.fixed_mask && !a.fixed_clean, whole_quads);
        for (int i = 0; i < 3; ++i) h[i] = take(p.terms & (kTermPush | kTermC1 | kTermC2 | kTermC3), dim);
        for (int i = 0; i < p.n_slots; ++i) {
            const int64_t width = p.slot_width[i] + (S == 1 ? 4 * W : 0);
            slots[0][i] = take(i > 0 || (p.terms & kTermCin), width);
            slots[1][i] = p.slot_differs[i] ? take(true, width) : slots[0][i];
        }
        for (int b = 0; b < 2; ++b)
            pairs[b] =
                reinterpret_cast<uint32_t*>(take(p.pairs && b < p.branches, p.pairs + (S == 1 ? W : 0)));
        int widest = 0;
        for (int i = 0; i < p.n_ops; ++i) {
            const PackedOp& op = p.ops[i];
            widest = op.n_out_padded > widest ? op.n_out_padded : widest;
            lane_init[i] = take(op.class_table && a.labels && S > 1 && !is_joint(op), op.n_out);
        }
        for (float*& branch : init) {
            branch = base ? base + used : nullptr;
            used += widest;
        }
        return used;
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

}  // namespace df::DF_ISA
