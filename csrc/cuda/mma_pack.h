// Packs a plan of narrow linear layers for the kernel on tensor cores that keeps all weights in shared memory
// (chain_mma.cuh).
#pragma once
#include "resident_pack.h"

namespace df::cuda {

struct MmaShape : LayerShape {
    int tiles;             // of 16 samples, a warp
    int64_t shared_bytes;  // of a block
};

// Whether the kernel runs the plan, which has no chain_obstacle; if so, fills shape.
bool choose_mma(const Plan& plan, Precision precision, const DeviceLimits& limits, MmaShape& shape);

MmaView pack_mma(const Plan& plan, const MmaShape& shape, Image& image);

}  // namespace df::cuda
