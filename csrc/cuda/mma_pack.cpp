#include "mma_pack.h"

#include <algorithm>

namespace df::cuda {
namespace {

int stepped_layers(const Plan& plan) {
    return int(
        std::count_if(plan.ops.begin(), plan.ops.end(), [](const TileOp& op) { return op.step_table >= 0; }));
}

// Operands of 16 inputs of each layer: of the first, whose inputs are x, fewer.
int k_tiles(const MmaShape& s, size_t layer) { return layer ? s.width / 16 : (s.eights + 1) / 2; }
int n_tiles(const MmaShape& s, size_t layer, size_t layers) {
    return layer + 1 < layers ? s.width / 8 : s.eights;
}

int64_t weight_bytes(const MmaShape& s, size_t layers) {
    int64_t tiles = 0;
    for (size_t i = 0; i < layers; ++i) tiles += k_tiles(s, i) * n_tiles(s, i, layers);
    return tiles * 32 * words_per_lane(s.precision) * 4;
}

int64_t shared_bytes(const Plan& plan, const MmaShape& s) {
    const int64_t layers = int64_t(plan.ops.size()), row = int64_t(s.width) * 4;
    const int64_t stage = int64_t(sizeof(StepRow)) + stepped_layers(plan) * row;
    return weight_bytes(s, size_t(layers)) + layers * row + kMmaThreads / 32 * 2 * stage + kKeyBytes +
           (has_history(plan) ? int64_t(12) * s.tiles * s.eights * kMmaThreads * 4 : 0);
}

std::vector<uint32_t> fragments(const Plan& plan, const MmaShape& s) {
    std::vector<uint32_t> out;
    for (size_t layer = 0; layer < plan.ops.size(); ++layer) {
        const bool repeated = layer == 0 && s.eights == 1 && s.precision != Precision::kFloat32;
        for (int n = 0; n < n_tiles(s, layer, plan.ops.size()); ++n)
            for (int k = 0; k < k_tiles(s, layer); ++k)
                for (int lane = 0; lane < 32; ++lane)
                    append_lane(plan, plan.ops[layer], s.precision, repeated, n, k, lane, out);
    }
    return out;
}

}  // namespace

bool choose_mma(const Plan& plan, Precision precision, const DeviceLimits& limits, MmaShape& shape) {
    const bool halves = precision != Precision::kFloat32, few_columns = plan.header.dim <= 8;
    uint32_t widest = plan.header.dim;
    for (const TileOp& op : plan.ops) widest = std::max(widest, op.n_out);
    // Registers allow float32 up to 64 wide, more than eight columns of x beside layers of 16 bits up to 64
    // wide alone, and two tiles there beside few columns.
    const int width = widest <= 32 && few_columns ? 32 : widest <= 64 ? 64 : 128;
    if (widest > (halves ? 128 : 64) || (!few_columns && !(halves && width == 64))) return false;
    const bool two_tiles = halves && few_columns && width <= 64;
    shape = {precision, width, few_columns ? 1 : width / 8, two_tiles ? 2 : 1, 0};
    shape.shared_bytes = shared_bytes(plan, shape);
    return shape.shared_bytes <= limits.shared_bytes;
}

MmaView pack_mma(const Plan& plan, const MmaShape& s, Image& image) {
    const size_t layers = plan.ops.size(), width = size_t(s.width);
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
        v.class_table[i] = append_class_rows(plan, op, s.width, image);
        const std::vector<float> rows = start_rows(plan, op, s.width);
        starts.insert(starts.end(), rows.begin(), rows.begin() + int64_t(width));
        if (op.step_table >= 0) stepped.push_back(rows);
    }
    v.starts = image.append(starts);
    std::vector<float> step_starts;
    for (size_t table = 0; table < plan.header.n_tables; ++table)
        for (const std::vector<float>& rows : stepped)
            step_starts.insert(step_starts.end(), rows.begin() + int64_t(table * width),
                               rows.begin() + int64_t((table + 1) * width));
    v.step_starts = image.append(step_starts);
    return v;
}

}  // namespace df::cuda
