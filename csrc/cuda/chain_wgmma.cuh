// The whole chain for plans of linear layers up to 128 wide, on Hopper's tensor cores: wgmma m64nNk16.
//
// A warpgroup owns 64 samples, each of its warps a tile of 16, and the sums of a layer come as its four
// warps' accumulators: packed in pairs they are the left operand of the next layer, so that activations never
// leave the registers. The right operand is read from shared memory, where the weights of all layers lie as
// core matrices, those of the same eight inputs together. A layer's columns come in chunks of as many as
// registers allow. While one warpgroup computes activations another has the tensor cores.
#pragma once
#include "chain_resident.cuh"
#include "mma_tiers.cuh"
#include "ptx_wgmma.h"
#include "wgmma_kernels.h"

namespace df::cuda {

// H: width of the layers, D: eights of columns of x.
template <class Tier, int H, int D>
struct WgmmaWarp : ResidentChain<H, D, 1, wgmma_threads(Tier::kParts, D), kWarpgroup> {
    using Chain = ResidentChain<H, D, 1, wgmma_threads(Tier::kParts, D), kWarpgroup>;
    using Chain::net, Chain::t;
    using Operand = typename Tier::Operand;
    static constexpr int K = H / 16, K0 = (D + 1) / 2, N = wgmma_chunk(Tier::kParts);

    // Of n columns, four of each eight in turn
    template <int n>
    using Sums = float[Tier::kParts][n / 2];

    const unsigned char* const weights;

    // What n columns of a layer from `column` on start from
    template <int n>
    __device__ void start(Sums<n>& sums, int layer, const float* values, int branch, int column) const {
#pragma unroll
        for (int i = 0; i < n / 2; i += 4) {
            const float2 v = *reinterpret_cast<const float2*>(values + column + 2 * i + 2 * t);
            sums[0][i] = sums[0][i + 2] = v.x;
            sums[0][i + 1] = sums[0][i + 3] = v.y;
        }
#pragma unroll
        for (int i = 0; Tier::kParts == 2 && i < n / 2; ++i) sums[Tier::kParts - 1][i] = 0.0f;
        if (net.class_table[layer] == kAbsent) return;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float* row = Chain::class_row(layer, branch, 0, half) + column;
#pragma unroll
            for (int i = 0; i < n / 2; i += 4) {
                const float2 w = *reinterpret_cast<const float2*>(row + 2 * i);
                sums[0][i + 2 * half] += w.x;
                sums[0][i + 2 * half + 1] += w.y;
            }
        }
    }

    template <int n>
    static __device__ void settle(Sums<n>& sums) {
#pragma unroll
        for (int part = 0; part < Tier::kParts; ++part) ptx::wgmma_settle(sums[part]);
    }

    // sums += the products of the first `depth` operands and n of a layer's columns. w: its weights from the
    // first of these columns on; the low parts of split weights lie behind all high ones.
    template <int n, int columns, int depth>
    __device__ void multiply(Sums<n>& sums, Operand (&in)[1][K], const unsigned char* w) const {
        constexpr int kEight = columns * 16;  // bytes of eight inputs of all columns
        const auto matrix = [&](int k, int part) {
            return ptx::wgmma_descriptor(w + 2 * (part * depth + k) * kEight, kEight, 128);
        };
        settle<n>(sums);
#pragma unroll
        for (int k = 0; k < depth; ++k)
#pragma unroll
            for (int part = 0; part < Tier::kParts; ++part) ptx::wgmma_settle(Tier::part(in[0][k], part));
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < depth; ++k) {
            const auto value = [&](int part) -> auto& { return Tier::part(in[0][k], part); };
            if constexpr (Tier::kParts == 2)
                ptx::wgmma<Tier::kFormat, n, false>(sums[1], value(1), matrix(k, 0), true);
            ptx::wgmma<Tier::kFormat, n, false>(sums[0], value(0), matrix(k, 0), true);
            if constexpr (Tier::kParts == 2)
                ptx::wgmma<Tier::kFormat, n, false>(sums[1], value(0), matrix(k, 1), true);
        }
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
        settle<n>(sums);
    }

    // f of the sums, in place of their first part
    template <int n>
    __device__ void activate(Sums<n>& sums, int layer) const {
#pragma unroll
        for (int i = 0; i < n / 2; i += 4) {
            typename Tier::Accumulator four;
#pragma unroll
            for (int part = 0; part < Tier::kParts; ++part)
#pragma unroll
                for (int r = 0; r < 4; ++r) Tier::part(four, part)[r] = sums[part][i + r];
            float v[4];
            Tier::values(four, v);
#pragma unroll
            for (int r = 0; r < 4; ++r) sums[0][i + r] = v[r];
        }
        Tier::activate(Function(net.function[layer]), net.param[layer], sums[0]);
    }

    __device__ void hidden(int layer, const float* values, int branch, Operand (&in)[1][K],
                           const unsigned char* w, Operand (&out)[1][K]) const {
#pragma unroll
        for (int column = 0; column < H; column += N) {
            Sums<N> sums;
            start<N>(sums, layer, values, branch, column);
            if (layer)
                multiply<N, H, K>(sums, in, w + column * 16);
            else
                multiply<N, H, K0>(sums, in, w + column * 16);
            activate<N>(sums, layer);
#pragma unroll
            for (int i = 0; i < N / 2; i += 4) {
                const int eight = column / 8 + i / 4;
                const float v[4] = {sums[0][i], sums[0][i + 1], sums[0][i + 2], sums[0][i + 3]};
                Tier::pack(v, eight % 2, out[0][eight / 2]);
            }
        }
    }

    __device__ void network(float c_in, const float* step_starts, int branch, float (&F)[1][D][4]) const {
        Operand values[1][K];
        Chain::template input<Tier>(c_in, values);
        const unsigned char* w = weights;
#pragma unroll 1
        for (int layer = 0; layer < net.layers - 1; ++layer) {
            Operand next[1][K];
            hidden(layer, Chain::values_of(layer, step_starts), branch, values, w, next);
            w += Tier::kParts * (layer ? K : K0) * H * 32;
#pragma unroll
            for (int k = 0; k < K; ++k) values[0][k] = next[0][k];
        }
        const int last = net.layers - 1;
        Sums<8 * D> sums;
        start<8 * D>(sums, last, Chain::values_of(last, step_starts), branch, 0);
        multiply<8 * D, 8 * D, K>(sums, values, w);
        activate<8 * D>(sums, last);
#pragma unroll
        for (int i = 0; i < 4 * D; ++i) F[0][i / 4][i % 4] = sums[0][i];
    }
};

template <class Tier, int H, int D>
__global__ void __launch_bounds__(wgmma_threads(Tier::kParts, D), 1)
    wgmma_chain(const __grid_constant__ MmaArgs args) {
    if constexpr (ptx::kHasWgmma) {
        using Warp = WgmmaWarp<Tier, H, D>;
        const ChainArgs& a = args.chain;
        const MmaView& net = args.net;
        const int groups = int(blockDim.x) / kWarpgroup, group = int(threadIdx.x) / kWarpgroup;
        const Resident resident = load_resident(a, net, groups);
        ptx::fence_async_proxy();
        __syncthreads();  // all weights are there
        float* kept = reinterpret_cast<float*>(resident.kept);
        if (a.scratch) kept = a.scratch + int64_t(blockIdx.x) * Warp::kept_floats(a.program, net);
        for (int64_t tile = int64_t(blockIdx.x) * groups + group; tile * kWgmmaSamples < a.n;
             tile += int64_t(gridDim.x) * groups) {
            Warp chain{{{a, *reinterpret_cast<const RoundKeys*>(resident.keys), net.history != 0},
                        net,
                        reinterpret_cast<const float*>(resident.starts),
                        resident.rings + group * 2 * stage_bytes(net),
                        kept + threadIdx.x,
                        tile * kWgmmaSamples + int(threadIdx.x) % kWarpgroup / 32 * 16},
                       resident.weights};
            chain.run([&chain](float c_in, const float* step_starts, int branch, auto& F) {
                chain.network(c_in, step_starts, branch, F);
            });
        }
    } else {
        ptx::trap_without_wgmma();
    }
}

}  // namespace df::cuda
