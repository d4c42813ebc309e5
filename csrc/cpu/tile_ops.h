// The tile operations beside linear layers and tables, on whole values.
#pragma once
#include "groups.h"
#include "linear.h"

namespace df::DF_ISA {

using cpu::PackedOp;

template <class Group>
DF_INLINE void norm_or_reduce(const PackedOp& op, const Group& g, int group, const float* x, float* y) {
    const int first = group * g.n;
    if (op.kind == OpKind::kNorm)
        return normalise(NormFunction(op.function), op.param, g, x, y,
                         op.weight ? op.weight + first : nullptr, op.bias ? op.bias + first : nullptr);
    g.put(y, 0, reduce(ReduceFunction(op.function), g, x));
}

// f of all features, then f' of all
template <int S>
DF_INLINE void map_with_slope(const PackedOp& op, const float* x, float* y) {
    const auto function = Function(op.function);
    float* slope = y + op.n_in * S;
    if constexpr (S == 1) {  // whole vectors of f reach into f', which is written over them
        const int count = (op.n_in + W - 1) / W * W;
        apply(function, op.param, x, y, count);
        apply(slope_of(function), op.param, x, slope, count);
    } else {
        apply_with_slope(function, op.param, x, y, slope, op.n_in * S);
    }
}

// ---- any op but linear and table: slots[...] in the layout of S lanes, S = 1 for a single sample

template <int S>
static __attribute__((noinline)) void other_op(const PackedOp& op, const float* x, const float* x2,
                                               float* y) {
    const int floats = S == 1 ? op.n_out_padded : op.n_out * S;
    switch (op.kind) {
        case OpKind::kMap:
            if (op.extra) return map_with_slope<S>(op, x, y);
            return apply(Function(op.function), op.param, x, y, floats);
        case OpKind::kBinary:
            return with_binary(BinaryFunction(op.function), [=](auto f) {
                for (int i = 0; i < floats; i += W) store(y + i, f(load(x + i), load(x2 + i)));
            });
        case OpKind::kGather:
            y += op.extra * S;
            for (int j = 0; j < op.n_in; ++j) memcpy(y + j * S, x + op.index[j] * S, S * sizeof(float));
            return;
        default:
            break;
    }
    const int size = op.n_in / op.extra, out_step = op.kind == OpKind::kNorm ? size : 1;
    for (int group = 0; group < op.extra; ++group) {
        const float* from = x + group * size * S;
        float* to = y + group * out_step * S;
        if constexpr (S == 1)
            norm_or_reduce(op, RowGroup{size}, group, from, to);
        else
            for (int v = 0; v < S; v += W) norm_or_reduce(op, LaneGroup{size, S}, group, from + v, to + v);
    }
}

}  // namespace df::DF_ISA
