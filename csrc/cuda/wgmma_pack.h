// Packs a plan of linear layers for Hopper's tensor cores (chain_wgmma.cuh).
#pragma once
#include "resident_pack.h"

namespace df::cuda {

struct WgmmaShape : LayerShape {
    int threads;           // of a block, at most
    int64_t shared_bytes;  // of such a block
    int64_t kept_bytes;    // of scratch memory that such a block takes, 0: it is in shared memory
};

// Fills shape where the kernel runs the plan, which has no chain_obstacle; else returns what stands in the
// way.
std::string wgmma_obstacle(const Plan& plan, Precision precision, const DeviceLimits& limits,
                           WgmmaShape& shape);

MmaView pack_wgmma(const Plan& plan, const WgmmaShape& shape, Image& image);

}  // namespace df::cuda
