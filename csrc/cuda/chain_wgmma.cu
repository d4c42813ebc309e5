#include "chain_wgmma.cuh"

namespace df::cuda {
namespace {

template <class Tier>
MmaKernel of_16_bits(const WgmmaShape& shape) {
    return shape.eights == 1 ? wgmma_chain<Tier, 128, 1> : wgmma_chain<Tier, 128, 8>;
}

}  // namespace

MmaKernel wgmma_kernel(const WgmmaShape& shape) {
    switch (shape.precision) {
        case Precision::kBfloat16:
            return of_16_bits<SixteenBits<ptx::Half::kBf16>>(shape);
        case Precision::kFloat16:
            return of_16_bits<SixteenBits<ptx::Half::kF16>>(shape);
        case Precision::kFloat32:
            break;
    }
    return wgmma_chain<SplitFloat32, 128, 1>;
}

}  // namespace df::cuda
