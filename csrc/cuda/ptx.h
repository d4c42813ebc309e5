// Every PTX instruction and approximate intrinsic of the kernels, wgmma apart (ptx_wgmma.h): one function
// each, with its emulated meaning beside it. Nothing else has inline assembly.
//
// 16-bit values are bit patterns, two in a register, the first in the low half. In fragments lane l has
// g = l / 4 and t = l % 4 (PTX ISA, "Matrix Fragments for mma.m16n8k16"):
//   a[r]  row g + 8 (r & 1), columns 2t and 2t + 1, plus 8 for r >= 2, of the 16 x 16 left operand
//   b0    rows 2t and 2t + 1 of column g of the 16 x 8 right operand;  b1: rows 2t + 8 and 2t + 9
//   c[r]  row g + 8 (r >> 1), column 2t + (r & 1) of the 16 x 8 accumulators
// So two neighbouring tiles of accumulators, packed in pairs, are a left operand of the next product.
#pragma once
#include <cstdint>

#include "device.h"

namespace df::cuda::ptx {

#if defined(DF_EMULATED)
using emulator::Half;
#else
enum class Half { kBf16, kF16 };
#endif

// ---- 16-bit formats, rounded to nearest, ties to even; NaN becomes 0x7fff

template <Half type>
__device__ __forceinline__ uint32_t pack(float low, float high) {
#if defined(DF_EMULATED)
    return emulator::from_float(type, low) | uint32_t(emulator::from_float(type, high)) << 16;
#else
    uint32_t bits;
    if constexpr (type == Half::kBf16)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
#endif
}

template <Half type>
__device__ __forceinline__ uint16_t to_half(float value) {
#if defined(DF_EMULATED)
    return emulator::from_float(type, value);
#else
    uint16_t bits;
    if constexpr (type == Half::kBf16)
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    else
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#endif
}

template <Half type>
__device__ __forceinline__ float from_half(uint16_t bits) {
#if defined(DF_EMULATED)
    return emulator::to_float(type, bits);
#else
    if constexpr (type == Half::kBf16) return __uint_as_float(uint32_t(bits) << 16);
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#endif
}

template <Half type>
__device__ __forceinline__ float2 unpack(uint32_t bits) {
    return make_float2(from_half<type>(uint16_t(bits)), from_half<type>(uint16_t(bits >> 16)));
}

// ---- approximate functions of the special function unit; the emulator computes them exactly

// relative error below 2^-10.9
__device__ __forceinline__ float tanh_approx(float x) {
#if defined(DF_EMULATED)
    return std::tanh(x);
#else
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// 2^x within 2 ulp; subnormals count as 0
__device__ __forceinline__ float ex2_approx(float x) {
#if defined(DF_EMULATED)
    return emulator::exp2_flushed(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// 1 / x within 1 ulp; subnormals count as 0
__device__ __forceinline__ float rcp_approx(float x) {
#if defined(DF_EMULATED)
    return emulator::reciprocal_flushed(x);
#else
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// ---- registers

// A value that the compiler takes for a new one: what follows from it is computed where it is used, rather
// than once and kept through a loop.
template <class T>
__device__ __forceinline__ void forget(T& value) {
#if !defined(DF_EMULATED)
    if constexpr (sizeof(T) == 8)
        asm volatile("" : "+l"(value));
    else
        asm volatile("" : "+r"(value));
#else
    (void)value;
#endif
}

// ---- tensor cores, by the whole warp

// c += a b
template <Half type>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if defined(DF_EMULATED)
    emulator::mma_m16n8k16(type, c, a, b0, b1);
#else
    if constexpr (type == Half::kBf16)
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

#if !defined(DF_EMULATED)
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return uint32_t(__cvta_generic_to_shared(pointer));
}
#endif

// Four 8 x 8 matrices of 16-bit values from shared memory: lane l gives the address (a multiple of 16) of row
// l % 8 of matrix l / 8, and gets columns 2t and 2t + 1 of row g of matrix r in out[r]; transposed, rows 2t
// and 2t + 1 of column g.
template <bool transposed>
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&out)[4], const void* row) {
#if defined(DF_EMULATED)
    emulator::ldmatrix_x4(out, row, transposed);
#else
    const uint32_t address = shared_address(row);
    if constexpr (transposed)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                     : "r"(address)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                     : "r"(address)
                     : "memory");
#endif
}

// ---- copies from global to shared memory

// 16 bytes, both addresses multiples of 16. The thread that copies sees them after its wait, others after a
// barrier that follows it.
__device__ __forceinline__ void cp_async16(void* shared, const void* global) {
#if defined(DF_EMULATED)
    emulator::copy_async(shared, global);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global))
                 : "memory");
#endif
}

// Ends a group of the copies issued so far.
__device__ __forceinline__ void cp_async_commit() {
#if defined(DF_EMULATED)
    emulator::copy_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the `left` latest groups are under way.
template <int left>
__device__ __forceinline__ void cp_async_wait() {
#if defined(DF_EMULATED)
    emulator::copy_wait(left);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
#endif
}

// ---- named barriers: 1 to 15, for whole warps; `threads` counts those that wait and those that only arrive

__device__ __forceinline__ void barrier_sync(int id, int threads) {
#if defined(DF_EMULATED)
    emulator::named_barrier(id, threads, true);
#else
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

__device__ __forceinline__ void barrier_arrive(int id, int threads) {
#if defined(DF_EMULATED)
    emulator::named_barrier(id, threads, false);
#else
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

}  // namespace df::cuda::ptx
