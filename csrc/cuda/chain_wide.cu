#include "chain_wide.cuh"

namespace df::cuda {

WideKernel wide_kernel(Precision precision) {
    switch (precision) {
        case Precision::kBfloat16:
            return wide_chain<SixteenBits<ptx::Half::kBf16>>;
        case Precision::kFloat16:
            return wide_chain<SixteenBits<ptx::Half::kF16>>;
        case Precision::kFloat32:
            break;
    }
    return wide_chain<SplitFloat32>;
}

}  // namespace df::cuda
