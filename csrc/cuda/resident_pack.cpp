#include "resident_pack.h"

#include <algorithm>

namespace df::cuda {
namespace {

int stepped_layers(const Plan& plan) {
    return int(
        std::count_if(plan.ops.begin(), plan.ops.end(), [](const TileOp& op) { return op.step_table >= 0; }));
}

}  // namespace

int k_tiles(const LayerShape& s, size_t layer) { return layer ? s.width / 16 : (s.eights + 1) / 2; }
int n_tiles(const LayerShape& s, size_t layer, size_t layers) {
    return layer + 1 < layers ? s.width / 8 : s.eights;
}

int64_t resident_bytes(const Plan& plan, const LayerShape& s, int rings) {
    const size_t layers = plan.ops.size();
    int64_t tiles = 0;
    for (size_t i = 0; i < layers; ++i) tiles += k_tiles(s, i) * n_tiles(s, i, layers);
    const int64_t weights = tiles * 32 * words_per_lane(s.precision) * 4, row = int64_t(s.width) * 4;
    const int64_t stage = int64_t(sizeof(StepRow)) + stepped_layers(plan) * row;
    return weights + int64_t(layers) * row + rings * 2 * stage + kKeyBytes;
}

int64_t kept_bytes(const Plan& plan, const LayerShape& s, int tiles, int threads) {
    const int values = (has_history(plan) ? 12 : 0) + (plan.header.branches == 2 ? 4 : 0);
    return int64_t(values) * tiles * s.eights * threads * 4;
}

MmaView pack_resident(const Plan& plan, const LayerShape& s, const std::vector<uint32_t>& weights,
                      Image& image) {
    const size_t layers = plan.ops.size(), width = size_t(s.width);
    MmaView v{};
    v.layers = int32_t(layers);
    v.width = s.width;
    v.weight_bytes = int32_t(weights.size() * 4);
    v.history = has_history(plan);
    v.weights = image.append(weights);
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
