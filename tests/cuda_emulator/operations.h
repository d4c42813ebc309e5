// What the engine does for a kernel: barriers, operations of a warp or warpgroup, and the emulated meaning of
// the PTX that csrc/cuda/ptx.h wraps. The intrinsics of emulator.h are spelled in these.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

// Where threads meet: the operation, and where the kernel calls it (null inside wrappers).
struct Site {
    const char* operation;
    const char* file = nullptr;
    int line = 0;
};

int lane();

// __syncthreads: every thread of the block, at the same place in the source; how many brought true.
int block_barrier(const Site& site, bool predicate);
// bar.sync and bar.arrive: barrier 1 .. 15 for `threads` threads, whole warps.
void named_barrier(int id, int threads, bool wait);
void warp_barrier(const Site& site, uint32_t mask);

// value <- the one that lane `source` brings, which must be in the mask.
void shuffle(const Site& site, uint32_t mask, void* value, size_t size, int source);
uint32_t ballot(const Site& site, uint32_t mask, bool predicate);

// The block's dynamic shared memory, and the 32-bit address that PTX would use.
unsigned char* shared_memory();
uint32_t shared_address(const void* pointer);

// 16 bytes into shared memory. The target is NaN until the thread's wait, as if copies landed at the last
// moment. At most `left` of the thread's groups may stay under way after a wait.
void copy_async(void* target, const void* source);
void copy_commit();
void copy_wait(int left);
// fence.proxy.async: what this thread copied becomes visible to wgmma.
void fence_async_proxy();

enum class Half { kBf16, kF16 };

uint16_t from_float(Half type, float value);
float to_float(Half type, uint16_t bits);
// ex2.approx.ftz and rcp.approx.ftz, but for their accuracy
float exp2_flushed(float x);
float reciprocal_flushed(float x);

// c += a b for one warp: the fragments of mma.sync.m16n8k16.
void mma_m16n8k16(Half type, float* c, const uint32_t* a, uint32_t b0, uint32_t b1);
// Four 8 x 8 matrices of 16-bit values: lane l brings the address of row l % 8 of matrix l / 8.
void ldmatrix_x4(uint32_t* out, const void* row, bool transposed);

// d = a b (+ d) for one warpgroup, m64 nN k16, a from registers, b by its descriptor (no swizzle).
// Nothing happens before the wait: d is NaN until then, b is read at the last moment.
void wgmma(Half type, int n, bool transposed, float* d, const uint32_t* a, uint64_t descriptor,
           bool accumulate);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int left);

}  // namespace emulator
