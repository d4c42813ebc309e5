// What one step, or a block of the noise stream, is called with: plain structs shared by CPU and CUDA.
// Pointers are to memory of the device that runs it.
#pragma once
#include <cstdint>

#include "noise.h"
#include "plan.h"

namespace df {

enum class Dtype : uint32_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

struct StepArgs {
    StepRow row;
    uint32_t terms;
    Dtype dtype;                   // of every tensor below but the scales
    void* out;                     // (n, dim)
    const void *x, *model_output;  // (n, dim)
    const void* uncond_output;     // (n, dim), or null
    float guidance_scale;          // of all samples
    const float* guidance_scales;  // (n) in its place, or null
    void* history[3];              // (n, dim) each where used
    void* prediction;              // (n, dim), or null: m is written there
    const float* factor;           // (n), each sample's guidance rescale, or null: filled in by run_step
    const float* threshold;        // (n), each sample's dynamic threshold, or null: filled in by run_step
    const void* log_variance;      // (n, dim), or null: row.s is the noise scale
    const void* noise;             // (n, dim) of dtype, or null: drawn from the stream
    int64_t n, dim;
    uint64_t start, seed;
    uint32_t step;
};

struct NoiseArgs {
    float* out;  // (n, dim)
    int64_t n, dim;
    uint64_t start, seed;
    uint32_t step;
    Purpose purpose;
    uint32_t substream;
};

}  // namespace df
