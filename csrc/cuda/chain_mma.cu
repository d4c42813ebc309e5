#include "chain_mma.cuh"

namespace df::cuda {
namespace {

template <class Tier>
MmaKernel of_16_bits(const MmaShape& shape) {
    if (shape.width == 128) return mma_chain<Tier, 128, 1, 1>;
    if (shape.width == 32) return mma_chain<Tier, 32, 1, 2>;
    return shape.eights == 1 ? mma_chain<Tier, 64, 1, 2> : mma_chain<Tier, 64, 8, 1>;
}

}  // namespace

MmaKernel mma_kernel(const MmaShape& shape) {
    switch (shape.precision) {
        case Precision::kBfloat16:
            return of_16_bits<SixteenBits<ptx::Half::kBf16>>(shape);
        case Precision::kFloat16:
            return of_16_bits<SixteenBits<ptx::Half::kF16>>(shape);
        case Precision::kFloat32:
            break;
    }
    return shape.width == 32 ? mma_chain<SplitFloat32, 32, 1, 1> : mma_chain<SplitFloat32, 64, 1, 1>;
}

}  // namespace df::cuda
