#include "mma_pack.h"

#include <algorithm>
#include <cmath>

#include "half.h"

namespace df::cuda {
namespace {

constexpr int kWidths[] = {32, 64, 128};  // with x of up to 8 columns, or as many as the width
constexpr float kLargestFloat16 = 65504.0f, kSplitScale = 2048.0f;

// Whether the ops are a chain of linear layers from x to the output.
bool is_chain(const Plan& plan) {
    uint32_t value = 0;
    for (const TileOp& op : plan.ops) {
        if (OpKind(op.kind) != OpKind::kLinear || op.src != value || op.extra != 0) return false;
        value = op.dst;
    }
    return value == plan.header.out_value;
}

std::string plan_obstacle(const Plan& plan) {
    const PlanHeader& h = plan.header;
    if (h.n_context || h.n_prologue) return "it has a context";
    if (!is_chain(plan)) return "its operations are not a chain of linear layers";
    if (plan.ops.size() < 2 || plan.ops.size() > size_t(kMaxLayers)) return "it has not 2 to 8 layers";
    for (const TileOp& op : plan.ops)  // padding, which is f(0), must be finite
        if (Function(op.function) > Function::kCos) return "a function after a layer is no activation";
    for (const StepRow& r : plan.rows)
        if (r.quantile != 0.0f || r.rescale != 0.0f) return "a row takes statistics of a whole sample";
    return "";
}

bool weights_fit_float16(const Plan& plan) {
    return std::all_of(plan.ops.begin(), plan.ops.end(), [&plan](const TileOp& op) {
        const auto first = plan.blob.begin() + op.weight;
        return std::all_of(first, first + int64_t(op.n_in) * op.n_out,
                           [](float w) { return std::fabs(w) <= kLargestFloat16; });
    });
}

int stepped_layers(const Plan& plan) {
    return int(
        std::count_if(plan.ops.begin(), plan.ops.end(), [](const TileOp& op) { return op.step_table >= 0; }));
}

// Operands of 16 inputs of each layer: of the first, whose inputs are x, fewer.
int k_tiles(const MmaShape& s, size_t layer) { return layer ? s.width / 16 : (s.eights + 1) / 2; }
int n_tiles(const MmaShape& s, size_t layer, size_t layers) {
    return layer + 1 < layers ? s.width / 8 : s.eights;
}
int words_per_lane(const MmaShape& s) { return s.precision == Precision::kFloat32 ? 4 : 2; }

int64_t weight_bytes(const MmaShape& s, size_t layers) {
    int64_t tiles = 0;
    for (size_t i = 0; i < layers; ++i) tiles += k_tiles(s, i) * n_tiles(s, i, layers);
    return tiles * 32 * words_per_lane(s) * 4;
}

bool has_history(const Plan& plan) { return plan.header.terms & (kTermPush | kTermC1 | kTermC2 | kTermC3); }

int64_t shared_bytes(const Plan& plan, const MmaShape& s) {
    const int64_t layers = int64_t(plan.ops.size()), row = int64_t(s.width) * 4;
    const int64_t stage = int64_t(sizeof(StepRow)) + stepped_layers(plan) * row;
    return weight_bytes(s, size_t(layers)) + layers * row + kMmaThreads / 32 * 2 * stage + kKeyBytes +
           (has_history(plan) ? int64_t(12) * s.tiles * s.eights * kMmaThreads * 4 : 0);
}

// The weight of output j and the k-th input of an operand. Of up to eight columns of x the second eight
// inputs are what rounding left of the first (SixteenBits::pack_rest).
float weight_of(const Plan& plan, const MmaShape& s, size_t layer, int j, int k) {
    const TileOp& op = plan.ops[layer];
    const bool repeated = layer == 0 && s.eights == 1 && s.precision != Precision::kFloat32;
    if (repeated) k %= 8;
    if (j >= int(op.n_out) || k >= int(op.n_in)) return 0.0f;
    return plan.blob[size_t(op.weight + int64_t(j) * op.n_in + k)];
}

uint16_t rounded(const MmaShape& s, float w) {
    return s.precision == Precision::kBfloat16 ? to_bfloat16(w) : to_float16(w);
}

// What lane l of a warp holds of inputs 16 k and outputs 8 n on: b0 and b1 (ptx.h), then of a split weight
// the low parts.
void append_lane(const Plan& plan, const MmaShape& s, size_t layer, int n, int k, int lane,
                 std::vector<uint32_t>& out) {
    const int g = lane / 4, t = lane % 4;
    for (int part = 0; part < words_per_lane(s) / 2; ++part)
        for (int b = 0; b < 2; ++b) {
            uint32_t word = 0;
            for (int i = 0; i < 2; ++i) {
                const float w = weight_of(plan, s, layer, 8 * n + g, 16 * k + 8 * b + 2 * t + i);
                uint16_t bits = rounded(s, w);
                if (part) bits = to_float16((w - from_float16(bits)) * kSplitScale);
                word |= uint32_t(bits) << (16 * i);
            }
            out.push_back(word);
        }
}

std::vector<uint32_t> fragments(const Plan& plan, const MmaShape& s) {
    std::vector<uint32_t> out;
    for (size_t layer = 0; layer < plan.ops.size(); ++layer)
        for (int n = 0; n < n_tiles(s, layer, plan.ops.size()); ++n)
            for (int k = 0; k < k_tiles(s, layer); ++k)
                for (int lane = 0; lane < 32; ++lane) append_lane(plan, s, layer, n, k, lane, out);
    return out;
}

// `count` rows of a table, each filled up to the kernel's width; zeros for an absent one
void append_rows(const Plan& plan, const MmaShape& s, const TileOp& op, int64_t offset, int64_t count,
                 std::vector<float>& out) {
    for (int64_t i = 0; i < count; ++i)
        for (int j = 0; j < s.width; ++j)
            out.push_back(j < int(op.n_out) && offset >= 0 ? plan.blob[size_t(offset + i * op.n_out + j)]
                                                           : 0.0f);
}

}  // namespace

std::string mma_obstacle(const Plan& plan, Precision precision, const DeviceLimits& limits, MmaShape& shape) {
    std::string obstacle = plan_obstacle(plan);
    if (!obstacle.empty()) return obstacle;
    int widest = int(plan.header.dim);
    for (const TileOp& op : plan.ops) widest = std::max(widest, int(op.n_out));
    const auto* width =
        std::find_if(std::begin(kWidths), std::end(kWidths), [widest](int w) { return w >= widest; });
    if (width == std::end(kWidths)) return "a layer is wider than 128";
    if (*width == 128 && plan.header.dim > 8) return "a layer is wider than 64, and a sample than 8";
    const int eights = plan.header.dim <= 8 ? 1 : *width / 8;
    const bool two_tiles = precision != Precision::kFloat32 && eights == 1 && *width <= 64;  // by registers
    shape = {precision, *width, eights, two_tiles ? 2 : 1, 0};
    if (precision != Precision::kBfloat16 && !weights_fit_float16(plan))
        return "a weight lies beyond the range of float16";
    shape.shared_bytes = shared_bytes(plan, shape);
    if (shape.shared_bytes > limits.shared_bytes)
        return "its weights need " + std::to_string(shape.shared_bytes) +
               " bytes of shared memory, of which the device has " + std::to_string(limits.shared_bytes);
    return "";
}

MmaView pack_mma(const Plan& plan, const MmaShape& s, Image& image) {
    const size_t layers = plan.ops.size();
    MmaView v{};
    v.layers = int32_t(layers);
    v.width = s.width;
    v.weight_bytes = int32_t(weight_bytes(s, layers));
    v.history = has_history(plan);
    v.weights = image.append(fragments(plan, s));
    std::vector<float> starts;
    std::vector<std::vector<float>> stepped;  // of each layer with a step table, all its rows
    for (size_t i = 0; i < layers; ++i) {
        const TileOp& op = plan.ops[i];
        v.function[i] = op.function;
        v.param[i] = op.param;
        v.step_layer[i] = op.step_table < 0 ? -1 : v.stepped++;
        append_rows(plan, s, op, op.bias, 1, starts);
        if (op.step_table >= 0) {
            stepped.emplace_back();
            append_rows(plan, s, op, op.step_table, plan.header.n_tables, stepped.back());
            for (size_t j = 0; j < stepped.back().size(); ++j)
                stepped.back()[j] = starts[i * size_t(s.width) + j % size_t(s.width)] + stepped.back()[j];
        }
        v.class_table[i] = kAbsent;
        if (op.class_table < 0) continue;
        std::vector<float> classes;
        append_rows(plan, s, op, op.class_table, plan.header.n_classes, classes);
        v.class_table[i] = image.append(classes);
    }
    v.starts = image.append(starts);
    std::vector<float> step_starts;
    for (size_t table = 0; table < plan.header.n_tables; ++table)
        for (const std::vector<float>& rows : stepped)
            step_starts.insert(step_starts.end(), rows.begin() + int64_t(table) * s.width,
                               rows.begin() + int64_t(table + 1) * s.width);
    v.step_starts = image.append(step_starts);
    return v;
}

}  // namespace df::cuda
