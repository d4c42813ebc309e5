// What the CUDA kernels offer to the bindings, without a CUDA type. Every pointer is to memory of the device,
// and the caller keeps it alive until its stream has passed the call.
#pragma once
#include <string>
#include <vector>

#include "../step_args.h"

namespace df::cuda {

struct Target {
    int device;
    void* stream;  // a cudaStream_t
};

// Device memory that takes the place of a seed and a step, or null: a replayed graph reads it anew.
struct Replay {
    const uint64_t* seed;
    const int64_t* step;  // its lowest 28 bits
};

struct Probe {
    int driver, runtime;  // CUDA versions, 1000 major + 10 minor; driver 0: none
    int devices;
    int code;  // of counting the devices, a cudaError_t
    std::string message;
};

Probe probe();

std::vector<int> architectures();  // that there is code for, 10 major + minor

// Loads every kernel on the device, so that the first launch may be inside the capture of a graph.
void prepare(int device);

// One row on tensors in memory. factor and threshold: scratch of (n) floats each, needed where the row
// rescales its guidance and where it has a quantile.
void run_step(const StepArgs&, float* factor, float* threshold, const Replay&, const Target&);

void run_noise(const NoiseArgs&, const Replay&, const Target&);

// ---- between the sources of csrc/cuda

// Of the statistics whose pointers in the arguments are not null.
void run_statistics(const StepArgs&, float* factor, float* threshold, void* stream);

// What prepare() loads, by source.
void load_noise();
void load_statistics();
void load_step();

}  // namespace df::cuda
