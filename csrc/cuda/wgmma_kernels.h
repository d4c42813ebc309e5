// The instances of chain_wgmma.cuh.
#pragma once
#include "mma_kernels.h"
#include "wgmma_pack.h"

namespace df::cuda {

MmaKernel wgmma_kernel(const WgmmaShape& shape);

}  // namespace df::cuda
