// 16-bit formats, approximate functions, matrix fragments and products.
#include "cuda/ptx_wgmma.h"
#include "self_test.h"

namespace self_test {
namespace {

using namespace df::cuda;
using ptx::Half;

__device__ uint32_t pair(const uint16_t* at) { return at[0] | uint32_t(at[1]) << 16; }

template <Half type>
__global__ void convert(const float* in, uint32_t* packed, float* unpacked, uint16_t* halves, float* singles,
                        int n) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n) return;
    packed[i] = ptx::pack<type>(in[2 * i], in[2 * i + 1]);
    const float2 both = ptx::unpack<type>(packed[i]);
    unpacked[2 * i] = both.x;
    unpacked[2 * i + 1] = both.y;
    halves[i] = ptx::to_half<type>(in[2 * i]);
    singles[i] = ptx::from_half<type>(halves[i]);
}

__global__ void approximate(const float* in, float* tanh, float* exp2, float* reciprocal, int n) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n) return;
    tanh[i] = ptx::tanh_approx(in[i]);
    exp2[i] = ptx::ex2_approx(in[i]);
    reciprocal[i] = ptx::rcp_approx(in[i]);
}

// Fragments of a row-major left operand: rows first_row .. + 15, columns first_column .. + 15.
__device__ void load_left(uint32_t (&a)[4], const uint16_t* left, int columns, int first_row,
                          int first_column, Bug bug) {
    const int lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
    for (int r = 0; r < 4; ++r) {
        const int row = has(bug, kSwappedFragments) ? 8 * (r >> 1) : 8 * (r & 1),
                  column = has(bug, kSwappedFragments) ? 8 * (r & 1) : 8 * (r >> 1);
        a[r] = pair(left + (first_row + g + row) * columns + first_column + 2 * t + column);
    }
}

// d (16 x 8) = c + left (16 x 16) right^T (8 x 16)
template <Half type>
__global__ void mma(const uint16_t* left, const uint16_t* right, const float* c, float* d, Bug bug) {
    const int lane = int(threadIdx.x), g = lane / 4, t = lane % 4;
    uint32_t a[4];
    load_left(a, left, 16, 0, 0, bug);
    float sums[4];
    for (int r = 0; r < 4; ++r) sums[r] = c[(g + 8 * (r >> 1)) * 8 + 2 * t + (r & 1)];
    ptx::mma<type>(sums, a, pair(right + g * 16 + 2 * t), pair(right + g * 16 + 2 * t + 8));
    for (int r = 0; r < 4; ++r) d[(g + 8 * (r >> 1)) * 8 + 2 * t + (r & 1)] = sums[r];
}

// out (32 lanes x 4): the fragments of four 8 x 8 matrices, which lie below each other in `in`
template <bool transposed>
__global__ void load_matrices(const uint16_t* in, uint32_t* out, Bug bug) {
    auto* memory = reinterpret_cast<uint16_t*>(shared_memory());
    const int lane = int(threadIdx.x);
    for (int i = lane; i < 256; i += 32) memory[i] = in[i];
    __syncthreads();
    uint32_t fragments[4];
    ptx::ldmatrix_x4<transposed>(fragments, memory + (lane + has(bug, kRowOutOfRange)) * 8);
    for (int r = 0; r < 4; ++r) out[lane * 4 + r] = fragments[r];
}

// d (64 x n) = left (64 x 32) right^T (n x 32), plus d where `accumulate`: two products of 16 columns. The
// image of `right` has all core matrices of one k block before those of the next.
template <Half type, int n, bool transposed>
__global__ void __launch_bounds__(128)
    multiply(const uint16_t* left, const uint4* image, float* d, int accumulate, Bug bug) {
    if constexpr (ptx::kHasWgmma) {
        unsigned char* memory = shared_memory();
        for (int i = int(threadIdx.x); i < n * 4; i += 128) ptx::cp_async16(memory + 16 * i, image + i);
        ptx::cp_async_commit();
        ptx::cp_async_wait<0>();
        if (!has(bug, kMissingProxyFence)) ptx::fence_async_proxy();
        if (!has(bug, kMissingCopyBarrier)) __syncthreads();

        const int lane = int(threadIdx.x) % 32, first_row = int(threadIdx.x) / 32 * 16;
        const auto element = [&](int i) -> float& {
            return d[(first_row + lane / 4 + 8 * (i % 4 >> 1)) * n + i / 4 * 8 + lane % 4 * 2 + i % 2];
        };
        uint32_t a[2][4];
        load_left(a[0], left, 32, first_row, 0, bug);
        load_left(a[1], left, 32, first_row, 16, bug);
        float sums[n / 2];
#pragma unroll
        for (int i = 0; i < n / 2; ++i) sums[i] = element(i);
        uint32_t leading = n / 8 * 128, stride = 128;
        if (has(bug, kWrongStride)) stride = 256;
        if (has(bug, kStrideOutOfRange)) leading *= 4;
        if (has(bug, kOperandsDiffer) && threadIdx.x == 40) stride = 256;
        if (!has(bug, kMissingFence)) ptx::wgmma_fence();
        ptx::wgmma<type, n, transposed>(sums, a[0], ptx::wgmma_descriptor(memory, leading, stride),
                                        accumulate != 0);
        ptx::wgmma<type, n, transposed>(sums, a[1],
                                        ptx::wgmma_descriptor(memory + n / 8 * 256, leading, stride), true);
        ptx::wgmma_commit();
        if (!has(bug, kMissingProductWait)) ptx::wgmma_wait<0>();
#pragma unroll
        for (int i = 0; i < n / 2; ++i) element(i) = sums[i];
    }
}

// A group of its own for each of two products, the first waited for while the second is under way.
__global__ void __launch_bounds__(128) pipeline(const uint16_t* left, const uint4* image, float* d) {
    if constexpr (ptx::kHasWgmma) {
        unsigned char* memory = shared_memory();
        auto* words = reinterpret_cast<uint4*>(memory);
        for (int i = int(threadIdx.x); i < 64 * 4; i += 128) words[i] = image[i];
        ptx::fence_async_proxy();
        __syncthreads();
        const int lane = int(threadIdx.x) % 32, first_row = int(threadIdx.x) / 32 * 16;
        uint32_t a[2][4];
        float sums[2][32];
        for (int k = 0; k < 2; ++k) load_left(a[k], left, 32, first_row, 16 * k, kNone);
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            ptx::wgmma<Half::kBf16, 64, false>(sums[k], a[k],
                                               ptx::wgmma_descriptor(memory + k * 2048, 1024, 128), false);
            ptx::wgmma_commit();
        }
        const auto store = [&](int k) {
#pragma unroll
            for (int i = 0; i < 32; ++i)
                d[(k * 64 + first_row + lane / 4 + 8 * (i % 4 >> 1)) * 64 + i / 4 * 8 + lane % 4 * 2 +
                  i % 2] = sums[k][i];
        };
        ptx::wgmma_wait<1>();
        store(0);
        ptx::wgmma_wait<0>();
        store(1);
    }
}

template <Half type>
void launch_multiply(int n, int transposed, const uint16_t* left, const uint4* image, float* d,
                     int accumulate, Bug bug) {
    const auto run = [&](auto kernel) {
        launch(kernel, 1, 128, size_t(n) * 64, nullptr, left, image, d, accumulate, bug);
    };
    if (transposed && n == 64) return run(multiply<type, 64, true>);
    if (transposed) throw std::invalid_argument("n: accepted where transposed: 64");
    if (n == 8) return run(multiply<type, 8, false>);
    if (n == 64) return run(multiply<type, 64, false>);
    if (n == 128) return run(multiply<type, 128, false>);
    if (n == 136) return run(multiply<type, 136, false>);
    if (n == 256) return run(multiply<type, 256, false>);
    throw std::invalid_argument("n: accepted: 8, 64, 128, 136, 256");
}

}  // namespace
}  // namespace self_test

using namespace self_test;

DF_EXPORT const char* test_convert(int f16, const float* in, uint32_t* packed, float* unpacked,
                                   uint16_t* halves, float* singles, int n) {
    return caught([&] {
        launch(f16 ? convert<Half::kF16> : convert<Half::kBf16>, unsigned(n + 63) / 64, 64, 0, nullptr, in,
               packed, unpacked, halves, singles, n);
    });
}
DF_EXPORT const char* test_approximate(const float* in, float* tanh, float* exp2, float* reciprocal, int n) {
    return caught(
        [&] { launch(approximate, unsigned(n + 63) / 64, 64, 0, nullptr, in, tanh, exp2, reciprocal, n); });
}
DF_EXPORT const char* test_mma(int f16, const uint16_t* left, const uint16_t* right, const float* c, float* d,
                               const char* bug) {
    return caught([&] {
        launch(f16 ? mma<Half::kF16> : mma<Half::kBf16>, 1, 32, 0, nullptr, left, right, c, d,
               bug_named(bug));
    });
}
DF_EXPORT const char* test_ldmatrix(int transposed, const uint16_t* in, uint32_t* out, const char* bug) {
    return caught([&] {
        launch(transposed ? load_matrices<true> : load_matrices<false>, 1, 32, 512, nullptr, in, out,
               bug_named(bug));
    });
}
DF_EXPORT const char* test_wgmma(int f16, int transposed, int n, const uint16_t* left, const uint4* image,
                                 float* d, int accumulate, const char* bug) {
    return caught([&] {
        const auto run = f16 ? launch_multiply<Half::kF16> : launch_multiply<Half::kBf16>;
        run(n, transposed, left, image, d, accumulate, bug_named(bug));
    });
}
DF_EXPORT const char* test_wgmma_pipeline(const uint16_t* left, const uint4* image, float* d) {
    return caught([&] { launch(pipeline, 1, 128, 4096, nullptr, left, image, d); });
}
