#include "mma_plan.h"

#include <algorithm>
#include <cmath>

#include "half.h"

namespace df::cuda {
namespace {

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

bool weights_fit_float16(const Plan& plan) {
    return std::all_of(plan.ops.begin(), plan.ops.end(), [&plan](const TileOp& op) {
        const auto first = plan.blob.begin() + op.weight;
        return std::all_of(first, first + int64_t(op.n_in) * op.n_out,
                           [](float w) { return std::fabs(w) <= kLargestFloat16; });
    });
}

}  // namespace

std::string chain_obstacle(const Plan& plan, Precision precision) {
    const PlanHeader& h = plan.header;
    if (h.n_context || h.n_prologue) return "it has a context";
    if (!is_chain(plan)) return "its operations are not a chain of linear layers";
    if (plan.ops.size() < 2 || plan.ops.size() > size_t(kMaxLayers)) return "it has not 2 to 8 layers";
    for (const TileOp& op : plan.ops)  // padding, which is f(0), must be finite
        if (Function(op.function) > Function::kCos) return "a function after a layer is no activation";
    for (const StepRow& r : plan.rows)
        if (r.quantile != 0.0f || r.rescale != 0.0f) return "a row takes statistics of a whole sample";
    if (precision != Precision::kBfloat16 && !weights_fit_float16(plan))
        return "a weight lies beyond the range of float16";
    return "";
}

bool has_history(const Plan& plan) { return plan.header.terms & (kTermPush | kTermC1 | kTermC2 | kTermC3); }

int widest_layer(const Plan& plan) {
    uint32_t widest = 0;
    for (const TileOp& op : plan.ops) widest = std::max(widest, op.n_out);
    return int(widest);
}

int parts_of(Precision precision) { return precision == Precision::kFloat32 ? 2 : 1; }
int words_per_lane(Precision precision) { return 2 * parts_of(precision); }

uint16_t weight_bits(const Plan& plan, const TileOp& op, Precision precision, int part, int output,
                     int input) {
    if (output >= int(op.n_out) || input >= int(op.n_in)) return 0;
    const float w = plan.blob[size_t(op.weight + int64_t(output) * op.n_in + input)];
    const uint16_t high = precision == Precision::kBfloat16 ? to_bfloat16(w) : to_float16(w);
    return part ? to_float16((w - from_float16(high)) * kSplitScale) : high;
}

void append_lane(const Plan& plan, const TileOp& op, Precision precision, bool repeated, int n, int k,
                 int lane, std::vector<uint32_t>& out) {
    const int g = lane / 4, t = lane % 4;
    for (int part = 0; part < parts_of(precision); ++part)
        for (int b = 0; b < 2; ++b) {
            uint32_t word = 0;
            for (int i = 0; i < 2; ++i) {
                const int input = 16 * k + 8 * b + 2 * t + i;
                word |=
                    uint32_t(weight_bits(plan, op, precision, part, 8 * n + g, repeated ? input % 8 : input))
                    << (16 * i);
            }
            out.push_back(word);
        }
}

void append_rows(const Plan& plan, const TileOp& op, int64_t offset, int64_t count, int width,
                 std::vector<float>& out) {
    for (int64_t i = 0; i < count; ++i)
        for (int j = 0; j < width; ++j)
            out.push_back(j < int(op.n_out) && offset >= 0 ? plan.blob[size_t(offset + i * op.n_out + j)]
                                                           : 0.0f);
}

std::vector<float> start_rows(const Plan& plan, const TileOp& op, int width) {
    std::vector<float> bias, rows;
    append_rows(plan, op, op.bias, 1, width, bias);
    if (op.step_table < 0) return bias;
    append_rows(plan, op, op.step_table, plan.header.n_tables, width, rows);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = bias[i % size_t(width)] + rows[i];
    return rows;
}

int64_t append_class_rows(const Plan& plan, const TileOp& op, int width, Image& image) {
    if (op.class_table < 0) return kAbsent;
    std::vector<float> rows;
    append_rows(plan, op, op.class_table, plan.header.n_classes, width, rows);
    return image.append(rows);
}

}  // namespace df::cuda
