#include "mma_pack.h"

namespace df::cuda {

bool choose_mma(const Plan& plan, Precision precision, const DeviceLimits& limits, MmaShape& shape) {
    const bool halves = precision != Precision::kFloat32, few_columns = plan.header.dim <= 8;
    const int widest = widest_layer(plan);
    // Registers allow float32 up to 64 wide, more than eight columns of x beside layers of 16 bits up to 64
    // wide alone, and two tiles there beside few columns.
    const int width = widest <= 32 && few_columns ? 32 : widest <= 64 ? 64 : 128;
    if (widest > (halves ? 128 : 64) || (!few_columns && !(halves && width == 64))) return false;
    const bool two_tiles = halves && few_columns && width <= 64;
    shape = {{precision, width, few_columns ? 1 : width / 8}, two_tiles ? 2 : 1, 0};
    shape.shared_bytes =
        resident_bytes(plan, shape, kMmaThreads / 32) + kept_bytes(plan, shape, shape.tiles, kMmaThreads);
    return shape.shared_bytes <= limits.shared_bytes;
}

MmaView pack_mma(const Plan& plan, const MmaShape& s, Image& image) {
    std::vector<uint32_t> fragments;
    for (size_t layer = 0; layer < plan.ops.size(); ++layer) {
        const bool repeated = layer == 0 && s.eights == 1 && s.precision != Precision::kFloat32;
        for (int n = 0; n < n_tiles(s, layer, plan.ops.size()); ++n)
            for (int k = 0; k < k_tiles(s, layer); ++k)
                for (int lane = 0; lane < 32; ++lane)
                    append_lane(plan, plan.ops[layer], s.precision, repeated, n, k, lane, fragments);
    }
    return pack_resident(plan, s, fragments, image);
}

}  // namespace df::cuda
