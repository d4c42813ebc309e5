// Packs a plan of linear layers for the kernel on tensor cores (chain_mma.cuh).
#pragma once
#include <string>

#include "image.h"

namespace df::cuda {

struct DeviceLimits {
    int64_t shared_bytes;  // of one block, with opt-in
    int capability;        // 10 major + minor
    int multiprocessors;
};

enum class Precision { kFloat32, kBfloat16, kFloat16 };

// Which kernel: the layers' width and the eights of columns of x, both rounded up to what there is.
struct MmaShape {
    Precision precision;
    int width, eights, tiles;  // tiles: of 16 samples, a warp
    int64_t shared_bytes;      // of a block
};

// Fills shape where the kernel runs the plan, else returns what stands in the way.
std::string mma_obstacle(const Plan& plan, Precision precision, const DeviceLimits& limits, MmaShape& shape);

MmaView pack_mma(const Plan& plan, const MmaShape& shape, Image& image);

}  // namespace df::cuda
