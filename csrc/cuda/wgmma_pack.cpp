#include "wgmma_pack.h"

namespace df::cuda {
namespace {

// Matrices of 8 outputs and 8 inputs, a row of inputs for each output, those of the same inputs together. Of
// a split weight all high parts of a layer come first.
void append_matrices(const Plan& plan, const WgmmaShape& s, size_t layer, std::vector<uint32_t>& out) {
    const TileOp& op = plan.ops[layer];
    const bool repeated = layer == 0 && s.eights == 1 && s.precision != Precision::kFloat32;
    const int outputs = 8 * n_tiles(s, layer, plan.ops.size());
    for (int part = 0; part < parts_of(s.precision); ++part)
        for (int k = 0; k < 16 * k_tiles(s, layer); k += 8)
            for (int j = 0; j < outputs; ++j)
                for (int i = repeated ? 0 : k, end = i + 8; i < end; i += 2)
                    out.push_back(weight_bits(plan, op, s.precision, part, j, i) |
                                  uint32_t(weight_bits(plan, op, s.precision, part, j, i + 1)) << 16);
}

}  // namespace

std::string wgmma_obstacle(const Plan& plan, Precision precision, const DeviceLimits& limits,
                           WgmmaShape& shape) {
    if (limits.capability != 90) return "wgmma is of compute capability 9.0 alone";
    // Narrower layers would leave half of a product unused; registers set the rest.
    const bool halves = precision != Precision::kFloat32;
    const int widest = widest_layer(plan), most_columns = halves ? 64 : 8;
    if (widest <= 64 || widest > 128) return "wgmma takes layers of 65 to 128";
    if (int(plan.header.dim) > most_columns)
        return "wgmma takes at most " + std::to_string(most_columns) + " columns of x";
    shape = {{precision, 128, plan.header.dim <= 8 ? 1 : 8}, 0, 0, 0};
    const int most_threads = wgmma_threads(parts_of(precision), shape.eights);
    for (shape.threads = most_threads; shape.threads; shape.threads -= kWarpgroup) {
        shape.shared_bytes = resident_bytes(plan, shape, shape.threads / kWarpgroup);
        if (shape.shared_bytes <= limits.shared_bytes) break;
    }
    if (shape.shared_bytes > limits.shared_bytes)
        return "wgmma's resident weights need " + std::to_string(shape.shared_bytes) +
               " bytes of shared memory, of which the device has " + std::to_string(limits.shared_bytes);
    const int64_t kept = kept_bytes(plan, shape, 1, most_threads);
    if (shape.shared_bytes + kept <= limits.shared_bytes)
        shape.shared_bytes += kept;
    else
        shape.kept_bytes = kept;
    return "";
}

MmaView pack_wgmma(const Plan& plan, const WgmmaShape& s, Image& image) {
    std::vector<uint32_t> matrices;
    for (size_t layer = 0; layer < plan.ops.size(); ++layer) append_matrices(plan, s, layer, matrices);
    return pack_resident(plan, s, matrices, image);
}

}  // namespace df::cuda
