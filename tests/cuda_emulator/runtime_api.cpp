#include "runtime_api.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>

#include "emulator.h"
#include "engine.h"
#include "settings.h"

namespace emulator {

Settings settings;

namespace {

constexpr size_t kSharedWithoutAsking = 48 << 10;  // more needs cudaFuncSetAttribute
constexpr int kRuntimeVersion = 13000;

thread_local cudaError_t last_error = cudaSuccess;
thread_local int current_device = 0;

std::mutex attributes_lock;
std::map<const void*, size_t> shared_allowed;  // of each function that asked

// Errors of calls stay until cudaGetLastError, as CUDA's do.
cudaError_t report(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

cudaError_t driver_state() {
    if (settings.driver < kRuntimeVersion) return cudaErrorInsufficientDriver;
    return settings.devices == 0 ? cudaErrorNoDevice : cudaSuccess;
}

cudaError_t device_state(int device) {
    const cudaError_t driver = driver_state();
    if (driver != cudaSuccess) return driver;
    return device < 0 || device >= settings.devices ? cudaErrorInvalidDevice : cudaSuccess;
}

size_t allowed_shared(const void* function) {
    const std::lock_guard<std::mutex> lock(attributes_lock);
    const auto found = shared_allowed.find(function);
    return found == shared_allowed.end() ? kSharedWithoutAsking : found->second;
}

cudaError_t launch_state(const void* kernel, dim3 grid, dim3 threads, size_t shared_bytes) {
    const cudaError_t driver = driver_state();
    if (driver != cudaSuccess) return driver;
    const uint64_t per_block = uint64_t(threads.x) * threads.y * threads.z;
    if (per_block == 0 || per_block > kMaxThreads || threads.z > 64 || grid.x == 0 || grid.x > 0x7FFFFFFFu ||
        grid.y == 0 || grid.y > 65535 || grid.z == 0 || grid.z > 65535)
        return cudaErrorInvalidConfiguration;
    return shared_bytes > allowed_shared(kernel) ? cudaErrorInvalidValue : cudaSuccess;
}

struct ErrorText {
    cudaError_t error;
    const char *name, *text;
};
constexpr ErrorText kErrors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
};

const ErrorText& text_of(cudaError_t error) {
    const auto* found = std::find_if(std::begin(kErrors), std::end(kErrors),
                                     [error](const ErrorText& e) { return e.error == error; });
    return found == std::end(kErrors) ? kErrors[1] : *found;
}

}  // namespace

void launch(const void* kernel, dim3 grid, dim3 threads, size_t shared_bytes,
            const std::function<void()>& body) {
    if (report(launch_state(kernel, grid, threads, shared_bytes)) == cudaSuccess)
        run_grid(grid, threads, shared_bytes, body);
}

cudaError_t function_attributes(cudaFuncAttributes* attributes, const void* function) {
    const cudaError_t driver = driver_state();
    if (driver != cudaSuccess) return report(driver);
    *attributes = {};
    attributes->maxThreadsPerBlock = int(kMaxThreads);
    attributes->numRegs = 64;
    attributes->ptxVersion = attributes->binaryVersion = int(settings.capability);
    attributes->maxDynamicSharedSizeBytes = int(allowed_shared(function));
    return cudaSuccess;
}

cudaError_t set_function_attribute(const void* function, cudaFuncAttribute attribute, int value) {
    const cudaError_t driver = driver_state();
    if (driver != cudaSuccess) return report(driver);
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        value > settings.shared_limit)
        return report(cudaErrorInvalidValue);
    const std::lock_guard<std::mutex> lock(attributes_lock);
    shared_allowed[function] = std::max(size_t(value), kSharedWithoutAsking);
    return cudaSuccess;
}

cudaError_t resident_blocks(int* blocks, int threads, size_t shared_bytes) {
    const auto of_shared = shared_bytes ? (settings.shared_limit + 1024) / int64_t(shared_bytes + 1024) : 32;
    *blocks = int(std::min<int64_t>({of_shared, 2048 / threads, 32}));
    return report(driver_state());
}

}  // namespace emulator

using namespace emulator;

const char* cudaGetErrorName(cudaError_t error) { return text_of(error).name; }
const char* cudaGetErrorString(cudaError_t error) { return text_of(error).text; }
cudaError_t cudaPeekAtLastError() { return last_error; }
cudaError_t cudaGetLastError() {
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
    *status = settings.capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return report(driver_state());
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return report(driver_state()); }

cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    std::memcpy(target, source, bytes);
    return report(driver_state());
}
cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t) {
    std::memset(target, value, bytes);
    return report(driver_state());
}

cudaError_t cudaDriverGetVersion(int* version) {
    *version = int(settings.driver);
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = kRuntimeVersion;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
    const cudaError_t driver = driver_state();
    *count = driver == cudaSuccess ? int(settings.devices) : 0;
    return report(driver);
}
cudaError_t cudaGetDevice(int* device) {
    *device = current_device;
    return report(driver_state());
}
cudaError_t cudaSetDevice(int device) {
    const cudaError_t state = device_state(device);
    if (state == cudaSuccess) current_device = device;
    return report(state);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
    const cudaError_t state = device_state(device);
    if (state != cudaSuccess) return report(state);
    *p = {};
    std::strcpy(p->name, "emulated device");
    p->totalGlobalMem = size_t(1) << 34;
    p->sharedMemPerBlock = kSharedWithoutAsking;
    p->sharedMemPerBlockOptin = size_t(settings.shared_limit);
    p->sharedMemPerMultiprocessor = size_t(settings.shared_limit) + 1024;
    p->major = int(settings.capability / 10);
    p->minor = int(settings.capability % 10);
    p->multiProcessorCount = int(settings.multiprocessors);
    p->maxThreadsPerBlock = int(kMaxThreads);
    p->maxThreadsPerMultiProcessor = 2048;
    p->warpSize = warpSize;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp p;
    const cudaError_t state = cudaGetDeviceProperties(&p, device);
    if (state != cudaSuccess) return state;
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock:
            *value = p.maxThreadsPerBlock;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlock:
            *value = int(p.sharedMemPerBlock);
            break;
        case cudaDevAttrWarpSize:
            *value = p.warpSize;
            break;
        case cudaDevAttrMultiProcessorCount:
            *value = p.multiProcessorCount;
            break;
        case cudaDevAttrMaxThreadsPerMultiProcessor:
            *value = p.maxThreadsPerMultiProcessor;
            break;
        case cudaDevAttrComputeCapabilityMajor:
            *value = p.major;
            break;
        case cudaDevAttrComputeCapabilityMinor:
            *value = p.minor;
            break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
            *value = int(p.sharedMemPerMultiprocessor);
            break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = int(p.sharedMemPerBlockOptin);
            break;
        default:
            return report(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}

bool emulator_set(const char* name, int64_t value) {
    const std::map<std::string, int64_t*> known = {
        {"schedule", &settings.schedule},
        {"devices", &settings.devices},
        {"driver", &settings.driver},
        {"capability", &settings.capability},
        {"multiprocessors", &settings.multiprocessors},
        {"shared_limit", &settings.shared_limit},
        {"capturing", &settings.capturing},
    };
    const auto found = known.find(name);
    if (found == known.end()) return false;
    *found->second = value;
    return true;
}
