// What packing for the kernels with resident weights (chain_resident.cuh) has in common.
#pragma once
#include "mma_plan.h"

namespace df::cuda {

// The width of all layers and the eights of columns of x, both rounded up to what a kernel has.
struct LayerShape {
    Precision precision;
    int width, eights;
};

// Operands of 16 inputs of a layer, of the first, whose inputs are x, fewer; and its eights of outputs.
int k_tiles(const LayerShape& shape, size_t layer);
int n_tiles(const LayerShape& shape, size_t layer, size_t layers);

// Of a block's shared memory, but for what its threads keep. rings: of rows and their start values.
int64_t resident_bytes(const Plan& plan, const LayerShape& shape, int rings);

// What a block's threads keep beside x. tiles: of 16 samples, of a warp.
int64_t kept_bytes(const Plan& plan, const LayerShape& shape, int tiles, int threads);

// weights: of all layers, in the order of the kernel
MmaView pack_resident(const Plan& plan, const LayerShape& shape, const std::vector<uint32_t>& weights,
                      Image& image);

}  // namespace df::cuda
