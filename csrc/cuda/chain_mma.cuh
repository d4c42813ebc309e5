// The whole chain for plans of narrow linear layers, on tensor cores: mma.sync m16n8k16, sm_80 and later.
//
// Two accumulators side by side are, packed, one operand of the next layer: activations never leave the
// registers. Weights lie in shared memory in the order the lanes read them.
#pragma once
#include "chain_resident.cuh"
#include "mma_kernels.h"
#include "mma_tiers.cuh"

namespace df::cuda {

// H: width of the layers, D: eights of columns of x, M: tiles of 16 samples a warp.
template <class Tier, int H, int D, int M>
struct MmaWarp : ResidentChain<H, D, M, kMmaThreads, 32> {
    using Chain = ResidentChain<H, D, M, kMmaThreads, 32>;
    using Chain::lane, Chain::net, Chain::t;
    using Operand = typename Tier::Operand;
    using Weight = typename Tier::Weight;
    using Accumulator = typename Tier::Accumulator;
    static constexpr int kSamples = 16 * M, N = H / 8, K = H / 16, K0 = (D + 1) / 2;

    const Weight* const weights;

    __device__ void start(Accumulator (&acc)[M], int layer, const float* values, int branch, int n) const {
        const float2 v = *reinterpret_cast<const float2*>(values + 8 * n + 2 * t);
#pragma unroll
        for (int m = 0; m < M; ++m) acc[m] = Tier::start(v, v);
        if (net.class_table[layer] == kAbsent) return;
        const auto of_class = [&](int m, int half) {
            const float2 w =
                *reinterpret_cast<const float2*>(Chain::class_row(layer, branch, m, half) + 8 * n);
            return make_float2(v.x + w.x, v.y + w.y);
        };
#pragma unroll
        for (int m = 0; m < M; ++m) acc[m] = Tier::start(of_class(m, 0), of_class(m, 1));
    }

    // acc += the products of operands from .. to - 1
    template <int from, int to>
    __device__ void multiply(Accumulator (&acc)[M], const Operand (&in)[M][K], const Weight* w) const {
#pragma unroll
        for (int k = from; k < to; ++k) {
            const Weight b = w[k * 32 + lane];
#pragma unroll
            for (int m = 0; m < M; ++m) Tier::multiply(acc[m], in[m][k], b);
        }
    }

    __device__ static int k_tiles(int layer) { return layer ? K : K0; }

    __device__ void hidden(int layer, const float* values, int branch, const Operand (&in)[M][K],
                           const Weight* w, Operand (&out)[M][K]) const {
        const auto function = Function(net.function[layer]);
        const float param = net.param[layer];
#pragma unroll
        for (int n = 0; n < N; ++n) {
            Accumulator acc[M];
            start(acc, layer, values, branch, n);
            multiply<0, K0>(acc, in, w + n * k_tiles(layer) * 32);
            if (layer) multiply<K0, K>(acc, in, w + n * k_tiles(layer) * 32);
#pragma unroll
            for (int m = 0; m < M; ++m) {
                float v[4];
                Tier::values(acc[m], v);
                Tier::activate(function, param, v);
                Tier::pack(v, n % 2, out[m][n / 2]);
            }
        }
    }

    __device__ void network(float c_in, const float* step_starts, int branch, float (&F)[M][D][4]) const {
        Operand values[M][K];
        Chain::template input<Tier>(c_in, values);
        const Weight* w = weights;
#pragma unroll 1
        for (int layer = 0; layer < net.layers - 1; ++layer) {
            Operand next[M][K];
            hidden(layer, Chain::values_of(layer, step_starts), branch, values, w, next);
            w += N * k_tiles(layer) * 32;
#pragma unroll
            for (int m = 0; m < M; ++m)
#pragma unroll
                for (int k = 0; k < K; ++k) values[m][k] = next[m][k];
        }
        const int last = net.layers - 1;
#pragma unroll
        for (int c = 0; c < D; ++c) {
            Accumulator acc[M];
            start(acc, last, Chain::values_of(last, step_starts), branch, c);
            multiply<0, K>(acc, values, w + c * K * 32);
#pragma unroll
            for (int m = 0; m < M; ++m) {
                Tier::values(acc[m], F[m][c]);
                Tier::activate(Function(net.function[last]), net.param[last], F[m][c]);
            }
        }
    }
};

template <class Tier, int H, int D, int M>
__global__ void __launch_bounds__(kMmaThreads, 2) mma_chain(const __grid_constant__ MmaArgs args) {
    using Warp = MmaWarp<Tier, H, D, M>;
    const ChainArgs& a = args.chain;
    const MmaView& net = args.net;
    constexpr int kWarps = kMmaThreads / 32;
    const int warp = int(threadIdx.x) / 32;
    const Resident resident = load_resident(a, net, kWarps);
    __syncthreads();
    for (int64_t tile = int64_t(blockIdx.x) * kWarps + warp; tile * Warp::kSamples < a.n;
         tile += int64_t(gridDim.x) * kWarps) {
        Warp chain{{{a, *reinterpret_cast<const RoundKeys*>(resident.keys), net.history != 0},
                    net,
                    reinterpret_cast<const float*>(resident.starts),
                    resident.rings + warp * 2 * stage_bytes(net),
                    reinterpret_cast<float*>(resident.kept) + threadIdx.x,
                    tile * Warp::kSamples},
                   reinterpret_cast<const typename Tier::Weight*>(resident.weights)};
        chain.run([&chain](float c_in, const float* step_starts, int branch, auto& F) {
            chain.network(c_in, step_starts, branch, F);
        });
    }
}

}  // namespace df::cuda
