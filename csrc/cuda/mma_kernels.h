// The instances of chain_mma.cuh.
#pragma once
#include "mma_pack.h"

namespace df::cuda {

struct MmaArgs {
    ChainArgs chain;
    MmaView net;
};

using MmaKernel = void (*)(MmaArgs);
MmaKernel mma_kernel(const MmaShape& shape);

}  // namespace df::cuda
