// Which driver and devices there are.
#include "api.h"
#include "device.h"

namespace df::cuda {

Probe probe() {
    Probe p{};
    cudaDriverGetVersion(&p.driver);
    cudaRuntimeGetVersion(&p.runtime);
    const cudaError_t error = cudaGetDeviceCount(&p.devices);
    if (error != cudaSuccess) {
        p.devices = 0;
        p.code = int(error);
        p.message = cudaGetErrorString(error);
        cudaGetLastError();  // it was told here; the next check is not to see it
    }
    return p;
}

std::vector<int> architectures() {
#if defined(__CUDACC__)
    return {80, 86, 89, 90, 100, 120};  // as setup.py has them compiled
#else
    return {};
#endif
}

void prepare(int device) {
    const DeviceGuard guard(device);
    load_noise();
    load_statistics();
    load_step();
}

}  // namespace df::cuda
