#include "program.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace df::cuda {
namespace {

constexpr int kSamplesPerVector = 32;

int64_t workspace_bytes(const ProgramView& view, int vectors) {
    return int64_t(view.workspace) * kSamplesPerVector * vectors * int64_t(sizeof(float));
}

}  // namespace

Precision precision_named(const std::string& name) {
    if (name == "float32") return Precision::kFloat32;
    if (name == "bfloat16") return Precision::kBfloat16;
    if (name == "float16") return Precision::kFloat16;
    throw std::invalid_argument("precision: given: '" + name +
                                "'; accepted: 'float32', 'bfloat16' or 'float16'");
}

Program::Program(const Plan& plan, Precision precision, const DeviceLimits& limits) : limits_(limits) {
    if (limits.capability < 80)
        throw std::invalid_argument("device: its compute capability is " +
                                    std::to_string(limits.capability / 10) + "." +
                                    std::to_string(limits.capability % 10) + "; accepted: 8.0 and later");
    const PlanHeader& h = plan.header;
    lay_out(plan, assign_slots(plan, 1));
    view_.n_rows = int32_t(h.n_rows);
    view_.n_ops = int32_t(h.n_ops);
    view_.n_prologue = int32_t(h.n_prologue);
    view_.n_classes = int32_t(h.n_classes);
    view_.n_context = int32_t(h.n_context);
    view_.branches = int32_t(h.branches);
    view_.dim = int32_t(h.dim);
    view_.terms = h.terms;
    view_.rows = append(plan.rows);
    view_.null_context = append_floats(plan, h.null_context, h.n_context);
    std::vector<ImageOp> ops;
    for (const TileOp& op : plan.ops) ops.push_back(pack(plan, op));
    view_.ops = append(ops);
    choose_shape();
    reason_ = "float32 on the general path: one launch, a tile of " +
              std::to_string(kSamplesPerVector * shape_.vectors) + " samples a block, its values in " +
              (shape_.in_shared ? "shared memory" : "global memory, as they do not fit shared memory");
    if (precision != Precision::kFloat32) reason_ += "; no kernel of lower precision runs this plan";
}

// Copies values into the image, at a multiple of 16 bytes; returns where.
template <class T>
int64_t Program::append(const std::vector<T>& values) {
    const size_t at = image_.size(), bytes = values.size() * sizeof(T);
    image_.resize(at + (bytes + 15) / 16 * 4);
    if (bytes) std::memcpy(image_.data() + at, values.data(), bytes);
    return int64_t(at);
}

int64_t Program::append_floats(const Plan& plan, int64_t offset, int64_t count) {
    if (offset < 0) return kAbsent;
    const auto first = plan.blob.begin() + offset;
    return append(std::vector<float>(first, first + count));
}

int64_t Program::append_weight(const Plan& plan, const TileOp& op) {
    const float* weight = plan.blob.data() + op.weight;
    const int64_t n_in = op.n_in, n_out = op.n_out;
    if (op.weight < 0) return kAbsent;
    if (OpKind(op.kind) == OpKind::kGather) return append(std::vector<int32_t>(weight, weight + n_in));
    if (OpKind(op.kind) != OpKind::kLinear) return append_floats(plan, op.weight, n_out);
    std::vector<float> blocks;  // of kOutputs outputs, each [k][output]
    for (int64_t j = 0; j < n_out; j += kOutputs)
        for (int64_t k = 0; k < n_in; ++k)
            for (int64_t r = j; r < j + kOutputs; ++r) blocks.push_back(r < n_out ? weight[r * n_in + k] : 0);
    return append(blocks);
}

ImageOp Program::pack(const Plan& plan, const TileOp& op) {
    const PlanHeader& h = plan.header;
    ImageOp p{};
    p.kind = OpKind(op.kind);
    p.function = op.function;
    p.param = op.param;
    p.n_in = int32_t(op.n_in);
    p.n_out = int32_t(op.n_out);
    p.groups = int32_t(op.extra);
    const int32_t offset = p.kind == OpKind::kGather ? int32_t(op.extra) : 0;
    for (int b = 0; b < 2; ++b) {
        p.src[b] = value_at_[b][op.src];
        p.dst[b] = value_at_[b][op.dst] + offset;
        p.extra[b] = reads_extra(op) ? value_at_[b][op.extra] : -1;
    }
    p.differs = p.dst[0] != p.dst[1];
    p.weight = append_weight(plan, op);
    p.bias = append_floats(plan, op.bias, op.n_out);
    p.step_table = append_floats(plan, op.step_table, int64_t(h.n_tables) * op.n_out);
    const bool joint = p.kind == OpKind::kTable && TableFunction(op.function) == TableFunction::kJoint;
    const int64_t rows = int64_t(h.n_classes) * (joint ? h.n_tables : 1);
    p.class_table = append_floats(plan, op.class_table, rows * op.n_out);
    return p;
}

// The workspace of a tile: the state, then the slots.
void Program::lay_out(const Plan& plan, const Slots& slots) {
    const PlanHeader& h = plan.header;
    const int dim = int(h.dim);
    int used = 0;
    const auto take = [&used](bool wanted, int features) {
        const int at = wanted ? used : -1;
        if (wanted) used += features;
        return at;
    };
    view_.x = take(true, dim);
    view_.u = h.terms & kTermCin ? take(true, dim) : view_.x;
    view_.z = take(h.terms & kTermS, (dim + 3) / 4 * 4);
    view_.m = take(std::any_of(plan.rows.begin(), plan.rows.end(),
                               [](const StepRow& r) { return r.quantile != 0.0f; }),
                   dim);
    view_.history = take(h.terms & (kTermPush | kTermC1 | kTermC2 | kTermC3), 3 * dim);
    std::vector<int> slot_at[2] = {{view_.u}, {view_.u}};
    for (size_t i = 1; i < slots.width.size(); ++i) {
        slot_at[0].push_back(take(true, slots.width[i]));
        slot_at[1].push_back(slots.differs[i] ? take(true, slots.width[i]) : slot_at[0].back());
    }
    view_.workspace = used;
    for (int b = 0; b < 2; ++b) {
        for (int slot : slots.of_value) value_at_[b].push_back(slot_at[b][size_t(slot)]);
        view_.output[b] = value_at_[b][h.out_value];
        view_.context[b] = h.n_context ? value_at_[b][1] : -1;
    }
}

void Program::choose_shape() {
    for (int vectors : {2, 1}) {
        shape_ = {vectors, true, workspace_bytes(view_, vectors)};
        if (shape_.block_bytes + kKeyBytes <= limits_.shared_bytes) return;
    }
    shape_ = {2, false, workspace_bytes(view_, 2)};
}

int64_t Program::blocks(int64_t n, int64_t max_blocks) const {
    const int64_t samples = kSamplesPerVector * shape_.vectors, tiles = (n + samples - 1) / samples;
    int64_t most = shape_.in_shared ? int64_t(1) << 30 : limits_.multiprocessors;
    if (max_blocks > 0) most = std::min(most, max_blocks);
    return std::min(tiles, most);
}

int64_t Program::scratch_bytes(int64_t n) const {
    return shape_.in_shared ? 0 : blocks(n, 0) * shape_.block_bytes;
}

}  // namespace df::cuda
