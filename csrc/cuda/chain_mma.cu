#include "chain_mma.cuh"

namespace df::cuda {
namespace {

// kTiles: of 16 samples a warp where x has up to eight columns
template <class Tier, int kTiles>
MmaKernel kernel_of_tier(const MmaShape& shape) {
    if (shape.width == 32)
        return shape.eights == 1 ? mma_chain<Tier, 32, 1, kTiles> : mma_chain<Tier, 32, 4, 1>;
    if (shape.width == 128) return mma_chain<Tier, 128, 1, 1>;
    return shape.eights == 1 ? mma_chain<Tier, 64, 1, kTiles> : mma_chain<Tier, 64, 8, 1>;
}

}  // namespace

MmaKernel mma_kernel(const MmaShape& shape) {
    switch (shape.precision) {
        case Precision::kBfloat16:
            return kernel_of_tier<SixteenBits<ptx::Half::kBf16>, 2>(shape);
        case Precision::kFloat16:
            return kernel_of_tier<SixteenBits<ptx::Half::kF16>, 2>(shape);
        case Precision::kFloat32:
            break;
    }
    return kernel_of_tier<SplitFloat32, 1>(shape);
}

}  // namespace df::cuda
