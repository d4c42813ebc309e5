#include "wide_pack.h"

#include <algorithm>

namespace df::cuda {
namespace {

int divide_up(int a, int b) { return (a + b - 1) / b; }

// All but where the weights and tables lie in the image.
WideView layout(const Plan& plan, Precision precision) {
    WideView v{};
    const int dim = int(plan.header.dim);
    v.n_layers = int32_t(plan.ops.size());
    v.history = has_history(plan);
    v.branches = int32_t(plan.header.branches);
    v.operand_bytes = 32 * 8 * words_per_lane(precision);
    int in_tiles = divide_up(dim, 16);
    for (int i = 0; i < v.n_layers; ++i) {
        const TileOp& op = plan.ops[size_t(i)];
        WideLayer& layer = v.layers[i];
        layer.function = op.function;
        layer.param = op.param;
        layer.in_tiles = in_tiles;
        // whole operands of the next layer; of the last what x has
        in_tiles = divide_up(int(op.n_out), 16);
        layer.out_tiles = i + 1 < v.n_layers ? 2 * in_tiles : divide_up(dim, 8);
        layer.groups = kWideWarps;
        while (layer.groups > layer.out_tiles) layer.groups /= 2;
        v.buffer_tiles[i % 2] = std::max(v.buffer_tiles[i % 2], layer.in_tiles);
    }
    return v;
}

int weights_in_piece(Precision precision) { return kPieceBytes / (32 * 4 * words_per_lane(precision)); }

// The pieces of a warp for a layer: of up to as many columns as a piece has weights side by side, all inputs;
// then of the next columns. Of fewer columns a piece has several inputs. A piece lies in words of 16 bytes of
// each lane.
void append_pieces(const Plan& plan, const WideView& v, int layer, int warp, Precision precision,
                   std::vector<uint32_t>& out) {
    const WideLayer& l = v.layers[layer];
    const int group = warp % l.groups, last = (group + 1) * l.out_tiles / l.groups;
    const int most = weights_in_piece(precision), lane_words = words_per_lane(precision);
    const bool repeated =
        layer == 0 && v.layers[v.n_layers - 1].out_tiles == 1 && precision != Precision::kFloat32;
    for (int c = group * l.out_tiles / l.groups; c < last; c += most) {
        int side_by_side = 1;
        while (side_by_side < std::min(most, last - c)) side_by_side *= 2;
        for (int k = 0; k < l.in_tiles; k += most / side_by_side)
            for (int word = 0; word < 2; ++word)
                for (int lane = 0; lane < 32; ++lane)
                    for (int i = word * most / 2; i < (word + 1) * most / 2; ++i) {
                        const int column = c + i % side_by_side, input = k + i / side_by_side;
                        if (column < last && input < l.in_tiles)
                            append_lane(plan, plan.ops[size_t(layer)], precision, repeated, column, input,
                                        lane, out);
                        else
                            out.resize(out.size() + size_t(lane_words));
                    }
    }
}

}  // namespace

std::string wide_obstacle(const Plan& plan, Precision precision, const DeviceLimits& limits,
                          WideShape& shape) {
    const WideView view = layout(plan, precision);
    shape = {precision, kWideTiles, 0, widest_layer(plan)};
    for (; shape.tiles; --shape.tiles) {
        shape.shared_bytes = wide_memory(view, shape.tiles).bytes;
        if (shape.shared_bytes <= limits.shared_bytes) return "";
    }
    return "a tile of 16 samples needs " + std::to_string(shape.shared_bytes) +
           " bytes of shared memory, of which the device has " + std::to_string(limits.shared_bytes);
}

WideView pack_wide(const Plan& plan, const WideShape& shape, Image& image) {
    WideView v = layout(plan, shape.precision);
    for (int i = 0; i < v.n_layers; ++i) {
        const TileOp& op = plan.ops[size_t(i)];
        WideLayer& layer = v.layers[i];
        const int width = 8 * layer.out_tiles;
        layer.starts = image.append(start_rows(plan, op, width));
        layer.start_stride = op.step_table < 0 ? 0 : width;
        layer.class_table = append_class_rows(plan, op, width, image);
    }
    for (int warp = 0; warp < kWideWarps; ++warp) {
        std::vector<uint32_t> pieces;
        for (int i = 0; i < v.n_layers; ++i) append_pieces(plan, v, i, warp, shape.precision, pieces);
        v.pieces[warp] = int32_t(pieces.size() * 4 / kPieceBytes);
        v.weights[warp] = image.append(pieces);
    }
    return v;
}

}  // namespace df::cuda
