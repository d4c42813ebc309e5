// What kernels and the functions that launch them need of CUDA. nvcc compiles the same sources for the device
// and, where DF_EMULATED is defined, any C++ compiler for the emulator of tests/cuda_emulator.
#pragma once
#include <cstddef>
#include <stdexcept>
#include <string>

#if defined(DF_EMULATED)
#include "emulator.h"
#else
#include <cuda_runtime.h>
#endif

namespace df::cuda {

struct Error : std::runtime_error {
    Error(cudaError_t code, const char* where)
        : std::runtime_error(std::string(where) + ": " + cudaGetErrorString(code) + " (" +
                             cudaGetErrorName(code) + ")"),
          code(code) {}

    cudaError_t code;
};

inline void check(cudaError_t code, const char* where) {
    if (code == cudaSuccess) return;
    cudaGetLastError();  // or the next launch would be blamed for it
    throw Error(code, where);
}

// Makes a device current, and the one before again at the end of the scope.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        check(cudaGetDevice(&before_), "cudaGetDevice");
        if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
    }
    ~DeviceGuard() { cudaSetDevice(before_); }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int before_ = 0;
};

// Queues kernel(args...) on a stream; throws Error where the launch is refused.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, void* stream, A... args) {
#if defined(DF_EMULATED)
    (void)stream;
    emulator::launch(reinterpret_cast<const void*>(kernel), grid, block, shared_bytes,
                     [=] { kernel(args...); });
#else
    kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(args...);
#endif
    check(cudaPeekAtLastError(), "kernel launch");
}

#if defined(__CUDACC__) || defined(DF_EMULATED)

// The block's dynamic shared memory, aligned to 1024 bytes.
__device__ __forceinline__ unsigned char* shared_memory() {
#if defined(DF_EMULATED)
    return emulator::shared_memory();
#else
    extern __shared__ __align__(1024) unsigned char memory[];
    return memory;
#endif
}

#endif

}  // namespace df::cuda
