// Packs a plan of wide linear layers for the kernel on tensor cores through which weights stream
// (chain_wide.cuh).
#pragma once
#include "mma_plan.h"

namespace df::cuda {

struct WideShape {
    Precision precision;
    int tiles;             // of 16 samples, the most that a block has room for
    int64_t shared_bytes;  // of such a block
    int widest;            // layer
};

// Fills shape where the kernel runs the plan, which has no chain_obstacle; else returns what stands in the
// way.
std::string wide_obstacle(const Plan& plan, Precision precision, const DeviceLimits& limits,
                          WideShape& shape);

WideView pack_wide(const Plan& plan, const WideShape& shape, Image& image);

}  // namespace df::cuda
