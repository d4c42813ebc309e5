#include "program.h"

#include <algorithm>
#include <stdexcept>

namespace df::cuda {
namespace {

constexpr int kSamplesPerVector = 32;
constexpr int kMmaBlocks = 3;  // of kMmaThreads on a multiprocessor, by registers
constexpr const char* kPrecisions[] = {"float32", "bfloat16", "float16"};

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

const char* name_of(Precision precision) { return kPrecisions[int(precision)]; }

int64_t workspace_bytes(const ProgramView& view, int vectors) {
    return int64_t(view.workspace) * kSamplesPerVector * vectors * int64_t(sizeof(float));
}

}  // namespace

Precision precision_named(const std::string& name) {
    for (int i = 0; i < 3; ++i)
        if (name == kPrecisions[i]) return Precision(i);
    throw std::invalid_argument("precision: given: '" + name +
                                "'; accepted: 'float32', 'bfloat16' or 'float16'");
}

Program::Program(const Plan& plan, Precision precision, const DeviceLimits& limits, bool tensor_cores)
    : limits_(limits) {
    if (limits.capability < 80)
        throw std::invalid_argument("device: its compute capability is " +
                                    std::to_string(limits.capability / 10) + "." +
                                    std::to_string(limits.capability % 10) + "; accepted: 8.0 and later");
    const PlanHeader& h = plan.header;
    view_.n_rows = int32_t(h.n_rows);
    view_.n_ops = int32_t(h.n_ops);
    view_.n_prologue = int32_t(h.n_prologue);
    view_.n_classes = int32_t(h.n_classes);
    view_.n_context = int32_t(h.n_context);
    view_.branches = int32_t(h.branches);
    view_.dim = int32_t(h.dim);
    view_.terms = h.terms;
    view_.rows = image_.append(plan.rows);
    const std::string obstacle =
        tensor_cores ? prepare_tensor_cores(plan, precision) : "tensor cores are not to be used";
    if (obstacle.empty()) return;
    prepare_general(plan);
    reason_ = "float32 on the general path, as " + obstacle + ": a tile of " +
              std::to_string(kSamplesPerVector * general_shape_.vectors) + " samples a block, in " +
              (general_shape_.in_shared ? "shared memory" : "global memory");
}

std::string Program::prepare_tensor_cores(const Plan& plan, Precision precision) {
    std::string obstacle = chain_obstacle(plan, precision);
    if (!obstacle.empty()) return obstacle;
    reason_ = std::string(name_of(precision)) + " on tensor cores: layers ";
    const std::string no_wgmma = wgmma_obstacle(plan, precision, limits_, wgmma_shape_);
    if (no_wgmma.empty()) {
        path_ = Path::kWgmma;
        mma_view_ = pack_wgmma(plan, wgmma_shape_, image_);
        reason_ += std::to_string(wgmma_shape_.width) + " wide by wgmma, " + std::to_string(kWgmmaSamples) +
                   " samples a warpgroup, up to " + std::to_string(wgmma_shape_.threads / kWarpgroup) +
                   " of them a block, weights in shared memory";
        if (wgmma_shape_.kept_bytes) reason_ += ", what threads keep from step to step in global memory";
        return "";
    }
    if (choose_mma(plan, precision, limits_, mma_shape_)) {
        path_ = Path::kMma;
        mma_view_ = pack_mma(plan, mma_shape_, image_);
        reason_ += std::to_string(mma_shape_.width) + " wide, " + std::to_string(16 * mma_shape_.tiles) +
                   " samples a warp, weights in shared memory";
        return "";
    }
    obstacle = wide_obstacle(plan, precision, limits_, wide_shape_);
    if (!obstacle.empty()) return obstacle;
    path_ = Path::kWide;
    wide_view_ = pack_wide(plan, wide_shape_, image_);
    reason_ += "up to " + std::to_string(wide_shape_.widest) + " wide, " +
               std::to_string(16 * wide_shape_.tiles) + " samples a block, weights streamed, as " + no_wgmma;
    return "";
}

void Program::prepare_general(const Plan& plan) {
    lay_out(plan, assign_slots(plan, 1));
    view_.null_context = image_.append_floats(plan, plan.header.null_context, plan.header.n_context);
    std::vector<ImageOp> ops;
    for (const TileOp& op : plan.ops) ops.push_back(pack(plan, op));
    view_.ops = image_.append(ops);
    choose_shape();
}

int64_t Program::append_weight(const Plan& plan, const TileOp& op) {
    const float* weight = plan.blob.data() + op.weight;
    const int64_t n_in = op.n_in, n_out = op.n_out;
    if (op.weight < 0) return kAbsent;
    if (OpKind(op.kind) == OpKind::kGather) return image_.append(std::vector<int32_t>(weight, weight + n_in));
    if (OpKind(op.kind) != OpKind::kLinear) return image_.append_floats(plan, op.weight, n_out);
    std::vector<float> blocks;  // of kOutputs outputs, each [k][output]
    for (int64_t j = 0; j < n_out; j += kOutputs)
        for (int64_t k = 0; k < n_in; ++k)
            for (int64_t r = j; r < j + kOutputs; ++r) blocks.push_back(r < n_out ? weight[r * n_in + k] : 0);
    return image_.append(blocks);
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
    p.bias = image_.append_floats(plan, op.bias, op.n_out);
    p.step_table = image_.append_floats(plan, op.step_table, int64_t(h.n_tables) * op.n_out);
    const bool joint = p.kind == OpKind::kTable && TableFunction(op.function) == TableFunction::kJoint;
    const int64_t rows = int64_t(h.n_classes) * (joint ? h.n_tables : 1);
    p.class_table = image_.append_floats(plan, op.class_table, rows * op.n_out);
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
    view_.m = take(
        std::any_of(plan.rows.begin(), plan.rows.end(), [](const StepRow& r) { return r.quantile != 0.0f; }),
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
        general_shape_ = {vectors, true, workspace_bytes(view_, vectors)};
        if (general_shape_.block_bytes + kKeyBytes <= limits_.shared_bytes) return;
    }
    general_shape_ = {2, false, workspace_bytes(view_, 2)};
}

int Program::wide_tiles(int64_t n) const {
    const int64_t tiles = divide_up(n, 16);
    const int64_t rounds = divide_up(tiles, int64_t(wide_shape_.tiles) * limits_.multiprocessors);
    return int(divide_up(tiles, rounds * limits_.multiprocessors));
}

int Program::warpgroups(int64_t n) const {
    const int64_t each = divide_up(divide_up(n, kWgmmaSamples), limits_.multiprocessors);
    return int(std::clamp<int64_t>(each, 1, wgmma_shape_.threads / kWarpgroup));  // 1: there may be no sample
}

int64_t Program::blocks(int64_t n, int64_t max_blocks) const {
    int64_t samples = kSamplesPerVector * general_shape_.vectors;
    int64_t most = general_shape_.in_shared ? int64_t(1) << 30 : limits_.multiprocessors;
    if (path_ == Path::kMma) {  // as many as are resident: each loads the weights once
        samples = kMmaThreads / 32 * 16 * mma_shape_.tiles;
        most = limits_.multiprocessors *
               std::min<int64_t>(kMmaBlocks, limits_.shared_bytes / mma_shape_.shared_bytes);
    } else if (path_ == Path::kWgmma) {
        samples = int64_t(warpgroups(n)) * kWgmmaSamples;
        most = limits_.multiprocessors;
    } else if (path_ == Path::kWide) {
        samples = 16 * wide_tiles(n);
        most = limits_.multiprocessors;
    }
    if (max_blocks > 0) most = std::min(most, max_blocks);
    return std::min(divide_up(n, samples), most);
}

int64_t Program::scratch_bytes(int64_t n) const {
    if (path_ == Path::kWgmma) return blocks(n, 0) * wgmma_shape_.kept_bytes;
    if (path_ != Path::kGeneral || general_shape_.in_shared) return 0;
    return blocks(n, 0) * general_shape_.block_bytes;
}

}  // namespace df::cuda
