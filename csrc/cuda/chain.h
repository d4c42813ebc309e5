// The chain kernels as the binding sees them: no CUDA types.
#pragma once
#include "program.h"

namespace df::cuda {

// Loads the program's kernel and lets it use the shared memory that it needs, so that the first launch may
// take place in a stream capture.
void prepare_chain(const Program& program, int device);

// Launches the whole chain on `stream` of `device`. args.program is filled in here; n >= 1.
void run_chain(const Program& program, ChainArgs args, int64_t max_blocks, int device, void* stream);

}  // namespace df::cuda
