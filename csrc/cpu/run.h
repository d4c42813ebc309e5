// Splits a call over threads and runs it: whole chains, single steps, noise. No Python, no torch.
#pragma once
#include <vector>

#include "program.h"

namespace df::cpu {

// Called by the calling thread about every 50 ms with the number of samples done; false stops the call.
struct Poll {
    bool (*function)(void* context, int64_t done);
    void* context;
};

struct ChainReport {
    int64_t bad_rows;                // samples with a NaN or infinite element
    std::vector<int64_t> first_bad;  // the lowest few of them
};

// args.program, keep_going and watcher are filled in here. threads >= 1 is an upper limit.
ChainReport run_chain(const Program& program, ChainArgs args, int threads, Poll poll);

// The network's guided output of `row` at args.n points x_T (n, dim), to args.out (n, dim).
void run_network(const Program& program, ChainArgs args, int row, int threads, Poll poll);

void run_step(const Kernels& kernels, StepArgs args, int threads);
void run_noise(const Kernels& kernels, const NoiseArgs& args, int threads);

// The measured ceiling of multiply-adds, or of products of pairs of bfloat16, in GFLOP/s: the best of several
// chain counts over about `seconds`.
double product_peak(const Kernels& kernels, bool pairs, int threads, double seconds);

}  // namespace df::cpu
