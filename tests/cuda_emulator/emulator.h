// Runs CUDA C++ kernels on the host from the same sources: csrc/cuda/device.h includes this file where
// DF_EMULATED is defined, and the kernels are then plain C++.
//
// Every CUDA thread is a fiber; blocks run one after another. A fiber runs until it meets others: at a
// barrier, or in an operation of its warp or warpgroup, whose last thread to arrive computes it for all. The
// order is by thread index, or random from a seed (settings.h). What hardware would make undefined is an
// error here that names block, thread and operation: divergent barriers and masks, exited lanes, addresses
// outside shared memory, copies nobody waited for. What it would leave to chance shows as NaN: shared memory
// never written, the target of a copy and the accumulators of a wgmma before their wait.
//
// Data races are for the thread sanitizer: fibers are its threads, barriers and __syncwarp its only order.
// Build the kernels with -fsanitize=thread and the engine (*.cpp here) without.
//
// Not seen: the PTX text itself, weak memory order, the accuracy of approximate instructions and the rounding
// inside tensor cores, races between blocks, bank conflicts, registers, speed. __shared__ variables are not
// poisoned, the memory of device.h's shared_memory() is.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#include "operations.h"

#define __global__
#define __device__
#define __host__
#define __shared__ static  // one block at a time
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

// ---- vector types: what one aligned access of the device moves

namespace emulator {

template <class T>
struct alignas(2 * sizeof(T)) Vector2 {
    T x, y;
};
template <class T>
struct Vector3 {
    T x, y, z;
};
template <class T>
struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) Vector4 {
    T x, y, z, w;
};

}  // namespace emulator

using float2 = emulator::Vector2<float>;
using float3 = emulator::Vector3<float>;
using float4 = emulator::Vector4<float>;
using int2 = emulator::Vector2<int>;
using int4 = emulator::Vector4<int>;
using uint2 = emulator::Vector2<unsigned>;
using uint3 = emulator::Vector3<unsigned>;
using uint4 = emulator::Vector4<unsigned>;
using ushort2 = emulator::Vector2<unsigned short>;
using ushort4 = emulator::Vector4<unsigned short>;
using double2 = emulator::Vector2<double>;
using ulonglong2 = emulator::Vector2<unsigned long long>;

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// ---- the running thread; the engine sets threadIdx whenever it switches fibers

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulator {

// Runs every block of the grid; throws std::runtime_error where a kernel does what it must not. A launch that
// the device would refuse runs nothing and is left for cudaPeekAtLastError.
void launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes,
            const std::function<void()>& body);

}  // namespace emulator

// ---- barriers, shuffles and votes; the defaults are where the call stands in the kernel

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    emulator::block_barrier({"__syncthreads", file, line}, false);
}
inline int __syncthreads_count(int predicate, const char* file = __builtin_FILE(),
                               int line = __builtin_LINE()) {
    return emulator::block_barrier({"__syncthreads_count", file, line}, predicate != 0);
}
inline int __syncthreads_or(int predicate, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return emulator::block_barrier({"__syncthreads_or", file, line}, predicate != 0) > 0;
}
inline int __syncthreads_and(int predicate, const char* file = __builtin_FILE(),
                             int line = __builtin_LINE()) {
    return emulator::block_barrier({"__syncthreads_and", file, line}, predicate == 0) == 0;
}
inline void __syncwarp(unsigned mask = ~0u, const char* file = __builtin_FILE(),
                       int line = __builtin_LINE()) {
    emulator::warp_barrier({"__syncwarp", file, line}, mask);
}

namespace emulator {

template <class T>
T shuffled(const Site& site, unsigned mask, T value, int source) {
    static_assert(std::is_arithmetic_v<T> && sizeof(T) >= 4 && sizeof(T) <= 8, "what CUDA shuffles");
    shuffle(site, mask, &value, sizeof value, source);
    return value;
}

// The lane from which `lane` reads where its operand names `source`: itself outside its section of `width`.
inline int within_section(int lane, int source, int width) {
    const int first = lane & ~(width - 1);
    return source < first || source >= first + width ? lane : source;
}

}  // namespace emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, const char* file = __builtin_FILE(),
              int line = __builtin_LINE()) {
    const int first = emulator::lane() & ~(width - 1);
    return emulator::shuffled({"__shfl_sync", file, line}, mask, value, first | (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
    const int lane = emulator::lane(), source = lane ^ bits;
    // unlike the others it may read from an earlier section
    return emulator::shuffled({"__shfl_xor_sync", file, line}, mask, value,
                              source > (lane | (width - 1)) ? lane : source);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    const int lane = emulator::lane();
    return emulator::shuffled({"__shfl_down_sync", file, line}, mask, value,
                              emulator::within_section(lane, lane + int(delta), width));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, const char* file = __builtin_FILE(),
                 int line = __builtin_LINE()) {
    const int lane = emulator::lane();
    return emulator::shuffled({"__shfl_up_sync", file, line}, mask, value,
                              emulator::within_section(lane, lane - int(delta), width));
}

inline unsigned __ballot_sync(unsigned mask, int predicate, const char* file = __builtin_FILE(),
                              int line = __builtin_LINE()) {
    return emulator::ballot({"__ballot_sync", file, line}, mask, predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate, const char* file = __builtin_FILE(),
                      int line = __builtin_LINE()) {
    return emulator::ballot({"__any_sync", file, line}, mask, predicate != 0) != 0;
}
inline int __all_sync(unsigned mask, int predicate, const char* file = __builtin_FILE(),
                      int line = __builtin_LINE()) {
    return emulator::ballot({"__all_sync", file, line}, mask, predicate == 0) == 0;
}

// ---- atomics and fences

template <class T>
T atomicAdd(T* address, T value) {
    if constexpr (std::is_floating_point_v<T>) {
        T before, after;
        __atomic_load(address, &before, __ATOMIC_RELAXED);
        do {
            after = before + value;
        } while (
            !__atomic_compare_exchange(address, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
        return before;
    } else {
        return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
    }
}
template <class T>
T atomicMax(T* address, T value) {
    T before = __atomic_load_n(address, __ATOMIC_RELAXED);
    while (before < value &&
           !__atomic_compare_exchange_n(address, &before, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return before;
}
template <class T>
T atomicOr(T* address, T value) {
    return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

// ---- loads and stores with cache hints

template <class T>
T __ldg(const T* address) {
    return *address;
}
template <class T>
T __ldcs(const T* address) {
    return *address;
}
template <class T>
T __ldcg(const T* address) {
    return *address;
}
template <class T>
void __stcs(T* address, T value) {
    *address = value;
}

// ---- arithmetic with one rounding, to nearest; the host compiler must not contract (-ffp-contract=off)

inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline float __uint2float_rn(unsigned a) { return float(a); }
inline float __int2float_rn(int a) { return float(a); }
inline int __float2int_rn(float a) { return int(__builtin_rintf(a)); }

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float __int_as_float(int bits) { return __uint_as_float(unsigned(bits)); }
inline int __float_as_int(float value) { return int(__float_as_uint(value)); }

inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __clz(int a) { return a ? __builtin_clz(unsigned(a)) : 32; }
inline int __ffs(int a) { return __builtin_ffs(a); }

template <class T>
T min(T a, T b) {
    return a < b || b != b ? a : b;  // fminf: a number where one of them is NaN
}
template <class T>
T max(T a, T b) {
    return a > b || b != b ? a : b;
}

#include "runtime_api.h"
