// The instances of chain_wide.cuh.
#pragma once
#include "wide_pack.h"

namespace df::cuda {

struct WideArgs {
    ChainArgs chain;
    WideView net;
    int32_t tiles;  // of 16 samples, of a block
};

using WideKernel = void (*)(WideArgs);
WideKernel wide_kernel(Precision precision);

}  // namespace df::cuda
