// wgmma: the matrix product of a warpgroup (128 threads) on Hopper, sm_90a alone. See ptx.h.
//
// Warp w of the group holds rows 16 w .. 16 w + 15 of the 64 x 16 left operand in a[4] and of the 64 x n
// accumulators in d[n / 2], tile j of 8 columns in d[4 j] .. d[4 j + 3], as ptx.h's fragments. The right
// operand lies in shared memory as core matrices of 8 rows of 16 bytes, 128 bytes together, without swizzle:
//   K-major  (transposed = false)  a row is one n with 8 values of k
//   MN-major (transposed = true)   a row is one k with 8 values of n
// `leading` is the distance in bytes from a core matrix to the one with the next 8 k, `stride` to the next 8
// n.
//
// Order: wgmma_fence, the products, wgmma_commit, wgmma_wait. Neither d nor a may be touched between fence
// and wait: build all of a first, and see that the compiler does (wgmma_settle). Who wrote the right operand
// calls fence_async_proxy before the barrier.
#pragma once
#include "ptx.h"

namespace df::cuda::ptx {

// Only sm_90a has it: a kernel's body is worth compiling there, for the host and in the emulator.
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHasWgmma = false;
#else
constexpr bool kHasWgmma = true;
#endif

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DF_WGMMA_ASM(...) asm volatile(__VA_ARGS__)
#else
#define DF_WGMMA_ASM(...) __trap()
#endif

// In place of such a body elsewhere. A driver that is told to compile the PTX (CUDA_FORCE_PTX_JIT) brings its
// code to Hopper too: an error there, not samples that nobody wrote.
__device__ __forceinline__ void trap_without_wgmma() {
#if defined(__CUDA_ARCH__)
    __trap();
#endif
}

__device__ __forceinline__ uint64_t wgmma_descriptor(const void* matrix, uint32_t leading, uint32_t stride) {
#if defined(DF_EMULATED)
    const uint32_t address = emulator::shared_address(matrix);
#else
    const uint32_t address = shared_address(matrix);
#endif
    return uint64_t((address & 0x3FFFF) >> 4) | uint64_t(leading >> 4) << 16 | uint64_t(stride >> 4) << 32;
}

// What this thread wrote to shared memory becomes visible to wgmma.
__device__ __forceinline__ void fence_async_proxy() {
#if defined(DF_EMULATED)
    emulator::fence_async_proxy();
#else
    DF_WGMMA_ASM("fence.proxy.async.shared::cta;" :: : "memory");
#endif
}

__device__ __forceinline__ void wgmma_fence() {
#if defined(DF_EMULATED)
    emulator::wgmma_fence();
#else
    DF_WGMMA_ASM("wgmma.fence.sync.aligned;" :: : "memory");
#endif
}

__device__ __forceinline__ void wgmma_commit() {
#if defined(DF_EMULATED)
    emulator::wgmma_commit();
#else
    DF_WGMMA_ASM("wgmma.commit_group.sync.aligned;" :: : "memory");
#endif
}

// Waits until at most the `left` latest groups are under way.
template <int left>
__device__ __forceinline__ void wgmma_wait() {
#if defined(DF_EMULATED)
    emulator::wgmma_wait(left);
#else
    DF_WGMMA_ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(left) : "memory");
#endif
}

// Of registers that products read or write: what the source does to them before this is done before, and what
// it does behind is done behind. The compiler sees no dependence between a wait and the sums it waits for.
template <int n>
__device__ __forceinline__ void wgmma_settle(float (&d)[n]) {
#if !defined(DF_EMULATED)
#pragma unroll
    for (int i = 0; i < n; ++i) asm volatile("" : "+f"(d[i])::"memory");
#else
    (void)d;
#endif
}
template <int n>
__device__ __forceinline__ void wgmma_settle(uint32_t (&a)[n]) {
#if !defined(DF_EMULATED)
#pragma unroll
    for (int i = 0; i < n; ++i) asm volatile("" : "+r"(a[i])::"memory");
#else
    (void)a;
#endif
}

// d = a b, plus d where `accumulate`
template <Half type, int n, bool transposed>
__device__ __forceinline__ void wgmma(float (&d)[n / 2], const uint32_t (&a)[4], uint64_t descriptor,
                                      bool accumulate);

#if defined(DF_EMULATED)

template <Half type, int n, bool transposed>
void wgmma(float (&d)[n / 2], const uint32_t (&a)[4], uint64_t descriptor, bool accumulate) {
    emulator::wgmma(type, n, transposed, d, a, descriptor, accumulate);
}

#else

// The registers of d are operands of the assembly, one by one, so they have to be spelled out.
// clang-format off
#define DF_REGISTERS_4 "%0, %1, %2, %3"
#define DF_REGISTERS_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define DF_REGISTERS_64 \
    DF_REGISTERS_32 \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define DF_REGISTERS_68 \
    DF_REGISTERS_64 \
    ", %64, %65, %66, %67"
#define DF_REGISTERS_128 \
    DF_REGISTERS_64 \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
    ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95" \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
    ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define DF_FOUR(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define DF_SIXTEEN(i) DF_FOUR(i), DF_FOUR((i) + 4), DF_FOUR((i) + 8), DF_FOUR((i) + 12)
#define DF_D4 DF_FOUR(0)
#define DF_D32 DF_SIXTEEN(0), DF_SIXTEEN(16)
#define DF_D64 DF_D32, DF_SIXTEEN(32), DF_SIXTEEN(48)
#define DF_D68 DF_D64, DF_FOUR(64)
#define DF_D128 DF_D64, DF_SIXTEEN(64), DF_SIXTEEN(80), DF_SIXTEEN(96), DF_SIXTEEN(112)
// clang-format on

// registers: how many d has; a0 .. transposed: the numbers of the operands that follow them
#define DF_WGMMA(registers, n, format, a0, a1, a2, a3, b, accumulates, transposes)                        \
    DF_WGMMA_ASM(                                                                                         \
        "{ .reg .pred p; setp.ne.b32 p, %" #accumulates                                                   \
        ", 0; "                                                                                           \
        "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." format "." format " {" DF_REGISTERS_##registers \
        "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b ", p, 1, 1, %" #transposes                    \
        "; }" : DF_D##registers : "r"(a[0]),                                                              \
        "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor), "r"(int(accumulate)), "n"(int(transposed)))

#define DF_WGMMA_OF_TYPE(...)                 \
    if constexpr (type == Half::kBf16)        \
        DF_WGMMA_FORMAT("bf16", __VA_ARGS__); \
    else                                      \
        DF_WGMMA_FORMAT("f16", __VA_ARGS__)
#define DF_WGMMA_FORMAT(format, registers, n, ...) DF_WGMMA(registers, n, format, __VA_ARGS__)

template <Half type, int n, bool transposed>
__device__ __forceinline__ void wgmma(float (&d)[n / 2], const uint32_t (&a)[4], uint64_t descriptor,
                                      bool accumulate) {
    static_assert(n == 8 || n == 64 || n == 128 || n == 136 || n == 256,
                  "write down the registers of another n above");
    if constexpr (n == 8) {
        DF_WGMMA_OF_TYPE(4, 8, 4, 5, 6, 7, 8, 9, 10);
    } else if constexpr (n == 64) {
        DF_WGMMA_OF_TYPE(32, 64, 32, 33, 34, 35, 36, 37, 38);
    } else if constexpr (n == 128) {
        DF_WGMMA_OF_TYPE(64, 128, 64, 65, 66, 67, 68, 69, 70);
    } else if constexpr (n == 136) {
        DF_WGMMA_OF_TYPE(68, 136, 68, 69, 70, 71, 72, 73, 74);
    } else {
        DF_WGMMA_OF_TYPE(128, 256, 128, 129, 130, 131, 132, 133, 134);
    }
}

#undef DF_WGMMA
#undef DF_WGMMA_OF_TYPE
#undef DF_WGMMA_FORMAT
#undef DF_FOUR
#undef DF_SIXTEEN
#undef DF_D4
#undef DF_D32
#undef DF_D64
#undef DF_D68
#undef DF_D128
#undef DF_REGISTERS_4
#undef DF_REGISTERS_32
#undef DF_REGISTERS_64
#undef DF_REGISTERS_68
#undef DF_REGISTERS_128

#endif
#undef DF_WGMMA_ASM

}  // namespace df::cuda::ptx
