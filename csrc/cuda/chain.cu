// Launches the chain kernels.
#include "chain.h"
#include "chain_general.cuh"
#include "wgmma_kernels.h"
#include "wide_kernels.h"

namespace df::cuda {
namespace {

using GeneralKernel = void (*)(ChainArgs);

GeneralKernel general_kernel(const Program& program) {
    return program.general_shape().vectors == 2 ? general_chain<2> : general_chain<1>;
}

const void* kernel_of(const Program& program) {
    switch (program.path()) {
        case Path::kMma:
            return reinterpret_cast<const void*>(mma_kernel(program.mma_shape()));
        case Path::kWgmma:
            return reinterpret_cast<const void*>(wgmma_kernel(program.wgmma_shape()));
        case Path::kWide:
            return reinterpret_cast<const void*>(wide_kernel(program.wide_shape().precision));
        case Path::kGeneral:
            break;
    }
    return reinterpret_cast<const void*>(general_kernel(program));
}

// Of a block, at most
size_t shared_bytes(const Program& program) {
    if (program.path() == Path::kMma) return size_t(program.mma_shape().shared_bytes);
    if (program.path() == Path::kWgmma) return size_t(program.wgmma_shape().shared_bytes);
    if (program.path() == Path::kWide) return size_t(program.wide_shape().shared_bytes);
    const GeneralShape& shape = program.general_shape();
    return size_t(kKeyBytes + (shape.in_shared ? shape.block_bytes : 0));
}

void allow_shared_memory(const Program& program) {
    check(cudaFuncSetAttribute(kernel_of(program), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               int(shared_bytes(program))),
          "chain: shared memory");
}

}  // namespace

void prepare_chain(const Program& program, int device) {
    const DeviceGuard guard(device);
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, kernel_of(program)), "chain: loading the kernel");
    allow_shared_memory(program);
}

void run_chain(const Program& program, ChainArgs args, int64_t max_blocks, int device, void* stream) {
    const DeviceGuard guard(device);
    args.program = program.view();
    allow_shared_memory(program);
    const dim3 grid(unsigned(program.blocks(args.n, max_blocks)));
    const size_t bytes = shared_bytes(program);
    switch (program.path()) {
        case Path::kMma:
            return launch(mma_kernel(program.mma_shape()), grid, dim3(kMmaThreads), bytes, stream,
                          MmaArgs{args, program.mma_view()});
        case Path::kWgmma:
            return launch(wgmma_kernel(program.wgmma_shape()), grid,
                          dim3(unsigned(program.warpgroups(args.n) * kWarpgroup)), bytes, stream,
                          MmaArgs{args, program.mma_view()});
        case Path::kWide:
            return launch(wide_kernel(program.wide_shape().precision), grid, dim3(kWideThreads), bytes,
                          stream, WideArgs{args, program.wide_view(), program.wide_tiles(args.n)});
        case Path::kGeneral:
            return launch(general_kernel(program), grid, dim3(kGeneralThreads), bytes, stream, args);
    }
}

}  // namespace df::cuda
