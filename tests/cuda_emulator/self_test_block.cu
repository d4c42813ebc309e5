// Barriers, shuffles, votes, atomics, named barriers and asynchronous copies.
#include "cuda/ptx.h"
#include "self_test.h"

namespace self_test {
namespace {

using namespace df::cuda;

// Subtracts from each row of 128 its mean.
__global__ void center_rows(float* x, int rows, Bug bug) {
    auto* partial = reinterpret_cast<float*>(shared_memory());
    if (has(bug, kEarlyExit) && threadIdx.x == 5) return;
    for (int row = 0; row < rows; ++row) {
        float& value = x[row * 128 + int(threadIdx.x)];
        float sum = value;
        for (int distance = 16; distance; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
        if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
        if (has(bug, kTwoBarriers) && threadIdx.x < 64) {
            __syncthreads();
        } else if (!has(bug, kMissingBarrier) && (!has(bug, kDivergentBarrier) || threadIdx.x >= 32)) {
            __syncthreads();
        }
        value -= (partial[0] + partial[1] + partial[2] + partial[3]) / 128;
        if (!has(bug, kMissingSecondBarrier)) __syncthreads();
    }
}

// Row i of out (of one value for each of 64 threads) is what the i-th operation gives.
__global__ void warp_operations(const int* in, int* out, Bug bug) {
    const int thread = int(threadIdx.x), value = in[thread];
    const auto put = [&](int row, int result) { out[row * 64 + thread] = result; };
    if (has(bug, kExitedLane) && thread == 3) return;
    if (has(bug, kDivergentWarp) && thread % 2) put(0, int(__ballot_sync(~0u, value > 0)));
    if (has(bug, kLaneOutsideMask)) put(0, __shfl_sync(0xFFu, value, 0));
    if (has(bug, kShuffleFromOutside) && thread % 32 < 8) put(0, __shfl_sync(0xFFu, value, 20));
    put(0, __shfl_sync(~0u, value, value & 31));
    put(1, __shfl_sync(~0u, value, 5, 8));
    put(2, __shfl_xor_sync(~0u, value, 3));
    put(3, __shfl_xor_sync(~0u, value, 8, 8));
    put(4, __shfl_down_sync(~0u, value, 7));
    put(5, __shfl_down_sync(~0u, value, 3, 16));
    put(6, __shfl_up_sync(~0u, value, 7));
    put(7, __shfl_up_sync(~0u, value, 3, 16));
    put(8, int(__ballot_sync(~0u, value > 0)));
    put(9, __any_sync(~0u, value > 900));
    put(10, __all_sync(~0u, value > -1000));
    // both halves of the warp in turn, each with its own mask
    const unsigned half = thread % 32 < 16 ? 0xFFFFu : 0xFFFF0000u;
    put(11, thread % 32 < 16 ? int(__ballot_sync(half, value > 0)) : __shfl_xor_sync(half, value, 1));
    put(12, __syncthreads_count(value > 0));
    put(13, __syncthreads_or(value > 900));
    put(14, __syncthreads_and(value > -1000));
    put(15, int(__shfl_xor_sync(~0u, double(value) * 1e-3, 1) * 1e3));
}

// Neighbouring lanes exchange values through shared memory.
__global__ void exchange(const float* in, float* out, Bug bug) {
    auto* memory = reinterpret_cast<float*>(shared_memory());
    memory[threadIdx.x] = in[threadIdx.x];
    if (!has(bug, kMissingSyncwarp)) __syncwarp();
    out[threadIdx.x] = memory[threadIdx.x ^ 1];
}

// sums[0] += value, by every thread of every block, and the largest value in sums[1]
__global__ void atomics(const int* in, int* sums, float* total) {
    const int value = in[blockIdx.x * blockDim.x + threadIdx.x];
    atomicAdd(&sums[0], value);
    atomicMax(&sums[1], value);
    atomicAdd(total, float(value));
}

// Warp 0 hands rows of 32 to warp 1, one at a time; warp 2 does something else.
__global__ void hand_over(const float* in, float* out, int rows, Bug bug) {
    enum { kFull = 1, kEmpty = 2 };
    auto* memory = reinterpret_cast<float*>(shared_memory());
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    if (warp == 2) return;
    for (int row = 0; row < rows; ++row) {
        if (warp == 0) {
            if (row > 0) ptx::barrier_sync(kEmpty, 64);
            memory[lane] = in[row * 32 + lane];
            ptx::barrier_arrive(kFull, 64);
        } else {
            if (!has(bug, kMissingHandover) && (!has(bug, kHalfWarpAtBarrier) || lane < 16))
                ptx::barrier_sync(kFull, has(bug, kWrongBarrierCount) ? 96 : 64);
            out[row * 32 + lane] = memory[31 - lane];
            if (row + 1 < rows) ptx::barrier_arrive(kEmpty, 64);
        }
    }
}

// Copies n pieces of 16 bytes through shared memory in two groups and stores them in reverse.
__global__ void copy(const uint4* in, uint4* out, int n, Bug bug) {
    auto* memory = reinterpret_cast<uint4*>(shared_memory());
    const int half = n / 2, threads = int(blockDim.x);
    for (int i = int(threadIdx.x); i < half; i += threads) ptx::cp_async16(memory + i, in + i);
    ptx::cp_async_commit();
    for (int i = half + int(threadIdx.x); i < n; i += threads) ptx::cp_async16(memory + i, in + i);
    if (has(bug, kCopyMisaligned)) ptx::cp_async16(reinterpret_cast<char*>(memory) + 4, in);
    if (has(bug, kCopyOutOfRange)) ptx::cp_async16(memory + n, in);
    if (!has(bug, kMissingCopyCommit)) ptx::cp_async_commit();
    ptx::cp_async_wait<1>();
    if (!has(bug, kMissingCopyBarrier)) __syncthreads();
    for (int i = int(threadIdx.x); i < half; i += threads) out[i] = memory[half - 1 - i];
    if (!has(bug, kMissingCopyWait)) ptx::cp_async_wait<0>();
    if (!has(bug, kMissingCopyBarrier)) __syncthreads();
    for (int i = half + int(threadIdx.x); i < n; i += threads) out[i] = memory[n - 1 - (i - half)];
}

// Each of n threads reads what its neighbour wrote.
__global__ void touch(const float* in, float* out, int n, Bug bug) {
    auto* memory = reinterpret_cast<float*>(shared_memory());
    const int i = int(threadIdx.x);
    if (!has(bug, kReadUnwritten) || i != 7) memory[has(bug, kWriteOutOfRange) ? i + 1 : i] = in[i];
    __syncthreads();
    out[i] = memory[(i + 1) % n] + (has(bug, kGlobalOutOfRange) ? in[n + i] : 0.0f);
    if (has(bug, kReadMisaligned)) out[i] = reinterpret_cast<const float2*>(memory + 1)->x;
}

}  // namespace
}  // namespace self_test

using namespace self_test;

DF_EXPORT const char* test_center_rows(float* x, int rows, const char* bug) {
    return caught([&] { launch(center_rows, 1, 128, 16, nullptr, x, rows, bug_named(bug)); });
}
DF_EXPORT const char* test_warp_operations(const int* in, int* out, const char* bug) {
    return caught([&] { launch(warp_operations, 1, 64, 0, nullptr, in, out, bug_named(bug)); });
}
DF_EXPORT const char* test_exchange(const float* in, float* out, const char* bug) {
    return caught([&] { launch(exchange, 1, 64, 256, nullptr, in, out, bug_named(bug)); });
}
DF_EXPORT const char* test_atomics(const int* in, int* sums, float* total, int blocks) {
    return caught([&] { launch(atomics, unsigned(blocks), 64, 0, nullptr, in, sums, total); });
}
DF_EXPORT const char* test_hand_over(const float* in, float* out, int rows, const char* bug) {
    return caught([&] { launch(hand_over, 1, 96, 128, nullptr, in, out, rows, bug_named(bug)); });
}
DF_EXPORT const char* test_copy(const uint4* in, uint4* out, int n, const char* bug) {
    return caught([&] { launch(copy, 1, 64, size_t(n) * 16, nullptr, in, out, n, bug_named(bug)); });
}
DF_EXPORT const char* test_touch(const float* in, float* out, int n, const char* bug) {
    return caught([&] { launch(touch, 1, unsigned(n), size_t(n) * 4, nullptr, in, out, n, bug_named(bug)); });
}
DF_EXPORT const char* test_launch(unsigned grid, unsigned block, size_t shared_bytes, int allowed, float* x) {
    return caught([&] {
        const DeviceGuard guard(0);
        if (allowed)
            check(cudaFuncSetAttribute(exchange, cudaFuncAttributeMaxDynamicSharedMemorySize, allowed),
                  "cudaFuncSetAttribute");
        launch(exchange, grid, block, shared_bytes, nullptr, x, x, kNone);
    });
}
