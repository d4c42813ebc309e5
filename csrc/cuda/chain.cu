// Launches the chain kernels.
#include "chain.h"

#include "chain_general.cuh"

namespace df::cuda {
namespace {

using ChainKernel = void (*)(ChainArgs);

ChainKernel kernel_of(const Program& program) {
    const GeneralShape& shape = program.shape();
    if (!shape.in_shared) return general_chain<2, false>;
    return shape.vectors == 2 ? general_chain<2, true> : general_chain<1, true>;
}

size_t shared_bytes(const GeneralShape& shape) {
    return size_t(kKeyBytes + (shape.in_shared ? shape.block_bytes : 0));
}

void allow_shared_memory(const Program& program) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel_of(program)),
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               int(shared_bytes(program.shape()))),
          "chain: shared memory");
}

}  // namespace

void prepare_chain(const Program& program, int device) {
    const DeviceGuard guard(device);
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel_of(program))),
          "chain: loading the kernel");
    allow_shared_memory(program);
}

void run_chain(const Program& program, ChainArgs args, int64_t max_blocks, int device, void* stream) {
    const DeviceGuard guard(device);
    args.program = program.view();
    allow_shared_memory(program);
    const dim3 grid(unsigned(program.blocks(args.n, max_blocks)));
    launch(kernel_of(program), grid, dim3(kGeneralThreads), shared_bytes(program.shape()), stream, args);
}

}  // namespace df::cuda
