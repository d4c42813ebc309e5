#include "chain_mma.cuh"

namespace df::cuda {
namespace {

// kTiles: of 16 samples a warp where x has up to eight columns
template <class Tier, int kTiles>
MmaKernel up_to_64(const MmaShape& shape) {
    if (shape.width == 32) return mma_chain<Tier, 32, 1, kTiles>;
    return shape.eights == 1 ? mma_chain<Tier, 64, 1, kTiles> : mma_chain<Tier, 64, 8, 1>;
}

template <class Tier>
MmaKernel up_to_128(const MmaShape& shape) {
    return shape.width == 128 ? mma_chain<Tier, 128, 1, 1> : up_to_64<Tier, 2>(shape);
}

}  // namespace

MmaKernel mma_kernel(const MmaShape& shape) {
    switch (shape.precision) {
        case Precision::kBfloat16:
            return up_to_128<SixteenBits<ptx::Half::kBf16>>(shape);
        case Precision::kFloat16:
            return up_to_128<SixteenBits<ptx::Half::kF16>>(shape);
        case Precision::kFloat32:
            break;
    }
    return up_to_64<SplitFloat32, 1>(shape);
}

}  // namespace df::cuda
