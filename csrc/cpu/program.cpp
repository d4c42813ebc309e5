#include "program.h"

#include <algorithm>
#include <cstring>

namespace df::cpu {
namespace {

// Widths are padded to 16, whole vectors on every instruction set and whole quads of the noise.
constexpr int kPadding = 16;
int padded(uint32_t width) { return int(width + kPadding - 1) / kPadding * kPadding; }

// Bytes that a layer's inputs and outputs may take on a usual tile: a first cache of 32 KB, without room for
// much else. Beyond, the wide shape gives the same speed on a core of its own and 5 to 9 % more where a
// neighbour shares the caches (AVX2, medians; benchmarks/NOTES.md); below, the usual one gives 3 % more.
constexpr int64_t kUsualBytes = 32 << 10;

// Layers of fewer inputs or outputs stay in float32: what their products would gain, the conversion costs.
constexpr int kBfloat16Width = 32;

// The upper half of a float, rounded to nearest even; NaN becomes the quiet NaN that torch writes.
uint32_t bfloat16_bits(float value) {
    uint32_t u;
    std::memcpy(&u, &value, sizeof(u));
    return value != value ? 0x7fc0u : (u + 0x7fffu + ((u >> 16) & 1)) >> 16;
}

bool is_wide(const Plan& plan, const Kernels& kernels) {
    return std::any_of(plan.ops.begin(), plan.ops.end(), [&](const TileOp& op) {
        const int64_t bytes = (int64_t(op.n_in) + op.n_out) * kernels.usual.samples * int64_t(sizeof(float));
        return OpKind(op.kind) == OpKind::kLinear && bytes > kUsualBytes;
    });
}

}  // namespace

Program::Program(const Plan& plan, const Kernels& kernels, int low_rows)
    : kernels_(kernels),
      wide_(is_wide(plan, kernels)),
      low_rows_(low_rows),
      rows_(plan.rows),
      slots_(assign_slots(plan, kPadding)),
      header_(plan.header) {
    slot_differs_.reset(new bool[slots_.differs.size()]);
    std::copy(slots_.differs.begin(), slots_.differs.end(), slot_differs_.get());
    null_context_ =
        pack_table(plan, header_.null_context, 1, int(header_.n_context), padded(header_.n_context), false);
    for (const TileOp& op : plan.ops) {
        PackedOp packed = pack(plan, op);
        packed.differs = slots_.value_differs[op.dst];
        packed.src = slots_.of_value[op.src];
        packed.dst = slots_.of_value[op.dst];
        packed.extra = reads_extra(op) ? slots_.of_value[op.extra] : int(op.extra);
        ops_.push_back(packed);
        const int64_t work = packed.n_out * int64_t(packed.kind == OpKind::kLinear ? packed.n_in : 8);
        if (ops_.size() > header_.n_prologue) work_per_step_ += packed.differs ? 2 * work : work;
    }
}

PackedOp Program::pack(const Plan& plan, const TileOp& op) {
    PackedOp p{};
    p.kind = OpKind(op.kind);
    p.function = op.function;
    p.param = op.param;
    p.n_in = int(op.n_in);
    p.n_out = int(op.n_out);
    p.n_out_padded = padded(op.n_out);
    const float* weight = plan.blob.data() + op.weight;
    if (p.kind == OpKind::kLinear && low_rows_ && std::min(p.n_in, p.n_out) >= kBfloat16Width) {
        const int pairs = (p.n_in + 1) / 2;
        const auto pair = [=](int r, int k) {
            const float* at = weight + int64_t(r) * p.n_in + 2 * k;
            return bfloat16_bits(at[0]) | (2 * k + 1 < p.n_in ? bfloat16_bits(at[1]) << 16 : 0u);
        };
        p.pair_blocks = pack_blocks<uint32_t>(pair, p.n_out, pairs);
        p.pair_rows = pack_rows<uint32_t>(pair, p.n_out, pairs, p.n_out_padded);
        pairs_ = std::max(pairs_, pairs);
    }
    if (p.kind == OpKind::kLinear) {
        const auto value = [=](int r, int k) { return weight[int64_t(r) * p.n_in + k]; };
        p.blocks = pack_blocks<float>(value, p.n_out, p.n_in);
        p.rows = pack_rows<float>(value, p.n_out, p.n_in, p.n_out_padded);
    } else if (p.kind == OpKind::kNorm) {
        p.weight = pack_table(plan, op.weight, 1, p.n_out, p.n_out_padded, false);
    } else if (p.kind == OpKind::kGather) {
        auto* index = reinterpret_cast<int32_t*>(allocate(p.n_in));
        for (int j = 0; j < p.n_in; ++j) index[j] = int32_t(weight[j]);
        p.index = index;
    }
    p.bias = pack_table(plan, op.bias, 1, p.n_out, p.n_out_padded, false);
    p.step_table = pack_table(plan, op.step_table, header_.n_tables, p.n_out, p.n_out_padded, !p.bias);
    const bool alone = !p.bias && !p.step_table;
    const bool joint = p.kind == OpKind::kTable && TableFunction(op.function) == TableFunction::kJoint;
    const int64_t rows = int64_t(header_.n_classes) * (joint ? header_.n_tables : 1);
    p.class_table = pack_table(plan, op.class_table, rows, p.n_out, p.n_out_padded, alone);
    return p;
}

float* Program::allocate(int64_t floats) {
    storage_.push_back(std::make_unique<float[]>(size_t(floats) + 16));
    auto address = reinterpret_cast<uintptr_t>(storage_.back().get());
    return reinterpret_cast<float*>((address + 63) / 64 * 64);
}

// Blocks of outputs, the last one narrower: [block][k][outputs of the block]
template <class T, class Weight>
const T* Program::pack_blocks(Weight weight, int n_out, int terms) {
    const int block = tile().block;
    T* packed = reinterpret_cast<T*>(allocate(int64_t(n_out) * terms));
    T* at = packed;
    for (int j = 0; j < n_out; j += block)
        for (int k = 0; k < terms; ++k)
            for (int r = j; r < std::min(j + block, n_out); ++r) *at++ = weight(r, k);
    return packed;
}

// Panels of 8, 4 or 1 vectors of outputs, each [k][outputs of the panel]: read from end to end, as the
// hardware prefetches. Rows of all outputs, of which a panel is a strided part, ran at 0.6 of the speed from
// L3.
template <class T, class Weight>
const T* Program::pack_rows(Weight weight, int n_out, int terms, int padded) {
    T* packed = reinterpret_cast<T*>(allocate(int64_t(padded) * terms));
    T* at = packed;
    for (int first = 0, width; first < padded; first += width) {
        width = panel_vectors((padded - first) / kernels_.lanes) * kernels_.lanes;
        for (int k = 0; k < terms; ++k)
            for (int j = first; j < first + width; ++j) *at++ = j < n_out ? weight(j, k) : T(0);
    }
    return packed;
}

// The first table of a layer without bias is added to 0, which only turns -0 to +0: done here, once.
const float* Program::pack_table(const Plan& plan, int64_t offset, int64_t count, int width, int padded,
                                 bool added_to_zero) {
    if (offset < 0) return nullptr;
    float* packed = allocate(count * padded);
    for (int64_t i = 0; i < count; ++i)
        for (int j = 0; j < width; ++j) {
            const float value = plan.blob[size_t(offset + i * width + j)];
            packed[i * padded + j] = added_to_zero && value == 0.0f ? 0.0f : value;
        }
    return packed;
}

ProgramView Program::view() const {
    ProgramView v{};
    v.rows = rows_.data();
    v.ops = ops_.data();
    v.slot_width = slots_.width.data();
    v.slot_differs = slot_differs_.get();
    v.null_context = null_context_;
    v.n_rows = int(rows_.size());
    v.n_ops = int(ops_.size());
    v.n_prologue = int(header_.n_prologue);
    v.n_slots = int(slots_.width.size());
    v.out_slot = slots_.of_value[header_.out_value];
    v.context_slot = header_.n_context ? slots_.of_value[1] : 0;
    v.n_context = int(header_.n_context);
    v.dim = int(header_.dim);
    v.dim_padded = padded(header_.dim);
    v.n_classes = int(header_.n_classes);
    v.branches = int(header_.branches);
    v.pairs = pairs_;
    v.low_rows = low_rows_;
    v.terms = header_.terms;
    v.wide = wide_;
    v.thresholds =
        std::any_of(rows_.begin(), rows_.end(), [](const StepRow& r) { return r.quantile != 0.0f; });
    return v;
}

}  // namespace df::cpu
