// The whole chain for plans of linear layers, on tensor cores: mma.sync m16n8k16, sm_80 and later.
//
// A warp owns M tiles of 16 samples. x stays in float32 in the accumulator's layout for the whole chain:
// thread (g, t) of a warp holds rows g and g + 8 of each tile and columns 8 c + 2 t, + 1 of each 8 columns c,
// so that update and noise need no exchange beyond a pair of lanes. Two accumulators side by side are,
// packed, one operand of the next layer: activations never leave the registers. Weights lie in shared memory
// in the order the lanes read them; the row of the next step and the start values it selects are fetched
// while a step runs.
//
// A sample's result depends on its row alone, not on M, the warp or the grid.
#pragma once
#include "chain_args.h"
#include "device.h"
#include "mma_kernels.h"
#include "mma_tiers.cuh"
#include "state_lane.cuh"

namespace df::cuda {

// A row and the start values that it selects.
__device__ __forceinline__ int stage_bytes(const MmaView& net) {
    return int(sizeof(StepRow)) + net.stepped * net.width * 4;
}

// By all threads of the block; bytes: a multiple of 16.
__device__ __forceinline__ void copy_to_shared(unsigned char* to, const void* from, int bytes) {
    for (int i = 16 * int(threadIdx.x); i < bytes; i += 16 * int(blockDim.x))
        ptx::cp_async16(to + i, static_cast<const unsigned char*>(from) + i);
}

// H: width of the layers, D: eights of columns of x, M: tiles of 16 samples a warp.
template <class Tier, int H, int D, int M>
struct MmaWarp : StateLane<kMmaThreads> {
    using Lane = StateLane<kMmaThreads>;
    using Operand = typename Tier::Operand;
    using Weight = typename Tier::Weight;
    using Accumulator = typename Tier::Accumulator;
    static constexpr int kSamples = 16 * M, N = H / 8, K = H / 16, K0 = (D + 1) / 2;

    const MmaView& net;
    const Weight* const weights;
    const float* const starts;
    unsigned char* const ring;  // two stages of row and start values
    float* const history;       // of this thread: 3 values of each element, kMmaThreads apart
    const int64_t first;

    float x[M][D][4] = {};
    int32_t labels[M][2] = {};

    __device__ int64_t first_of(int m) const { return first + 16 * m; }

    // f(m, c) for the tiles of x
    template <class Each>
    __device__ void each_tile(Each f) const {
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int c = 0; c < D; ++c) f(m, c);
    }

    // The step's normals of eight columns of a tile; `fresh`: not from the quads drawn for the step before.
    // With up to four columns half of the threads would draw what nobody has: of two tiles they draw the
    // second.
    __device__ void noise(uint32_t word, bool fresh, uint32_t component, int m, int c, float (&quads)[M][4],
                          float (&z)[4]) const {
        if (M == 2 && a.program.dim <= 4) {
            if (m == 0 && fresh) draw<true>(word, first_of(t / 2), 0, quads[0]);
            spread(quads[0], component, z);
#pragma unroll
            for (int r = 0; m == 1 && r < 4; ++r) z[r] = __shfl_xor_sync(~0u, z[r], 2);
            return;
        }
        if (D > 1 || fresh) draw<D == 1>(word, first_of(m), quad(c), quads[m]);
        spread(quads[m], component, z);
    }

    // ---- the network

    __device__ void start(Accumulator (&acc)[M], int layer, const float* values, int branch, int n) const {
        const int at = 8 * n + 2 * t;
        const float2 v = *reinterpret_cast<const float2*>(values + at);
#pragma unroll
        for (int m = 0; m < M; ++m) acc[m] = Tier::start(v, v);
        if (net.class_table[layer] == kAbsent) return;
        const auto* table = reinterpret_cast<const float*>(a.image + net.class_table[layer]) + at;
        const auto of_class = [&](int m, int half) {
            const int32_t label = branch ? a.program.n_classes - 1 : labels[m][half];
            const float2 w = *reinterpret_cast<const float2*>(table + int64_t(label) * H);
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

    // The start values of a layer: of the step's own where it has a table
    __device__ const float* values_of(int layer, const float* step_starts) const {
        const int row = net.step_layer[layer];
        return row < 0 ? starts + layer * H : step_starts + row * H;
    }

    __device__ void input(float c_in, Operand (&in)[M][K]) const {
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int k = 0; k < K0; ++k) {
                float u[4];
#pragma unroll
                for (int r = 0; r < 4; ++r) u[r] = c_in * x[m][2 * k][r];
                Tier::pack(u, 0, in[m][k]);
                if (2 * k + 1 < D) {
#pragma unroll
                    for (int r = 0; r < 4; ++r) u[r] = c_in * x[m][(2 * k + 1) % D][r];
                    Tier::pack(u, 1, in[m][k]);
                } else {
                    Tier::pack_rest(u, in[m][k]);
                }
            }
    }

    __device__ void network(float c_in, const float* step_starts, int branch, float (&F)[M][D][4]) const {
        Operand values[M][K];
        input(c_in, values);
        const Weight* w = weights;
#pragma unroll 1
        for (int layer = 0; layer < net.layers - 1; ++layer) {
            Operand next[M][K];
            hidden(layer, values_of(layer, step_starts), branch, values, w, next);
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
            start(acc, last, values_of(last, step_starts), branch, c);
            multiply<0, K>(acc, values, w + c * K * 32);
#pragma unroll
            for (int m = 0; m < M; ++m) {
                Tier::values(acc[m], F[m][c]);
                Tier::activate(Function(net.function[last]), net.param[last], F[m][c]);
            }
        }
    }

    // F(u): with guidance F = F_u + s (F_c - F_u), the network's code being there once
    __device__ void evaluate(const StepRow& row, const float* step_starts, float (&F)[M][D][4]) const {
        const bool guided = a.program.branches == 2 && row.guidance != 1.0f;
        float null[M][D][4];
#pragma unroll 1
        for (int branch = guided; branch >= 0; --branch) {
            network(row.c_in, step_starts, branch, F);
            if (branch) each_tile([&](int m, int c) { copy(F[m][c], null[m][c]); });
        }
        if (!guided) return;
        each_tile([&](int m, int c) {
#pragma unroll
            for (int r = 0; r < 4; ++r)
                F[m][c][r] =
                    __fmaf_rn(guidance(row, first_of(m), r), F[m][c][r] - null[m][c][r], null[m][c][r]);
        });
    }

    static __device__ void copy(const float (&from)[4], float (&to)[4]) {
#pragma unroll
        for (int r = 0; r < 4; ++r) to[r] = from[r];
    }

    // ---- the chain

    // Row i and the start values it selects, to stage i % 2.
    __device__ void fetch(int i, uint32_t table) const {
        unsigned char* to = ring + i % 2 * stage_bytes(net);
        const auto* row = reinterpret_cast<const unsigned char*>(a.image + a.program.rows) +
                          int64_t(i) * int64_t(sizeof(StepRow));
        const auto* values = reinterpret_cast<const unsigned char*>(a.image + net.step_starts) +
                             int64_t(table) * net.stepped * H * 4;
        constexpr int kRow = int(sizeof(StepRow));
        for (int at = 16 * lane; at < stage_bytes(net); at += 16 * 32)
            ptx::cp_async16(to + at, at < kRow ? row + at : values + (at - kRow));
        ptx::cp_async_commit();
    }

    __device__ void begin() {
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) labels[m][half] = label(sample(first_of(m), half));
        each_tile([&](int m, int c) { Lane::begin(first_of(m), c, x[m][c]); });
        for (int i = 0; has_history && i < 12 * M * D; ++i) history[i * kMmaThreads] = 0.0f;
    }

    __device__ void fix(int i, float signal, float noise) {
        each_tile([&](int m, int c) { Lane::fix(i, first_of(m), c, signal, noise, x[m][c]); });
    }

    __device__ void write(float* rows) {
        each_tile([&](int m, int c) { Lane::write(rows, first_of(m), c, x[m][c]); });
    }

    __device__ void run() {
        const auto* rows = reinterpret_cast<const StepRow*>(a.image + a.program.rows);
        const int n_rows = a.program.n_rows;
        uint32_t next_table = rows[n_rows > 1 ? 1 : 0].table, drawn = ~0u;
        float quads[M][4] = {};  // what was drawn last, where one call serves several steps (D = 1)
        __syncwarp();            // all lanes have left the ring's last row of the tile before
        fetch(0, rows[0].table);
        begin();
        if (a.trajectory) write(a.trajectory);
#pragma unroll 1
        for (int i = 0; i < n_rows; ++i) {
            ptx::cp_async_wait<0>();
            __syncwarp();  // row i is there for all lanes, and all have left row i - 1
            if (i + 1 < n_rows) fetch(i + 1, next_table);
            next_table = rows[i + 2 < n_rows ? i + 2 : n_rows - 1].table;
            const auto& row = *reinterpret_cast<const StepRow*>(ring + i % 2 * stage_bytes(net));
            const auto* step_starts = reinterpret_cast<const float*>(&row + 1);
            if (a.fixed_mask && (row.flags & kEval))
                fix(i, a.fixed_clean ? 1.0f : row.signal, a.fixed_clean ? 0.0f : row.noise);
            float F[M][D][4] = {};
            if (row.flags & kEval) evaluate(row, step_starts, F);
            uint32_t component = 0;
            const bool draws = row.s != 0.0f && !a.noise;  // fma(0, z, x) is x
            const uint32_t word =
                draws ? step_word(uint32_t(i), kPurposeStep, uint32_t(a.program.dim), component) : drawn;
            each_tile([&](int m, int c) {
                float z[4] = {};
                if (draws)
                    noise(word, word != drawn, component, m, c, quads, z);
                else if (row.s != 0.0f)
                    given_noise(i, first_of(m), c, z);
                update_tile<(D > 1)>(row, c, F[m][c], z, x[m][c], history + 12 * (m * D + c) * kMmaThreads);
            });
            drawn = word;
            if (a.fixed_mask && i + 1 == n_rows) fix(i, 1.0f, 0.0f);
            if (a.trajectory) write(a.trajectory + int64_t(i + 1) * a.n * a.program.dim);
        }
        write(a.out);
    }
};

template <class Tier, int H, int D, int M>
__global__ void __launch_bounds__(kMmaThreads, 2) mma_chain(const __grid_constant__ MmaArgs args) {
    using Warp = MmaWarp<Tier, H, D, M>;
    const ChainArgs& a = args.chain;
    const MmaView& net = args.net;
    constexpr int kWarps = kMmaThreads / 32;
    const int warp = int(threadIdx.x) / 32;
    unsigned char* weights = shared_memory();
    unsigned char* starts = weights + net.weight_bytes;
    unsigned char* rings = starts + net.layers * H * 4;
    unsigned char* keys = rings + kWarps * 2 * stage_bytes(net);
    auto* history = reinterpret_cast<float*>(keys + kKeyBytes);
    copy_to_shared(weights, a.image + net.weights, net.weight_bytes);
    copy_to_shared(starts, a.image + net.starts, net.layers * H * 4);
    ptx::cp_async_commit();
    if (threadIdx.x == 0 && a.device_seed) *reinterpret_cast<RoundKeys*>(keys) = RoundKeys(*a.device_seed);
    ptx::cp_async_wait<0>();
    __syncthreads();
    for (int64_t tile = int64_t(blockIdx.x) * kWarps + warp; tile * Warp::kSamples < a.n;
         tile += int64_t(gridDim.x) * kWarps)
        Warp{{a, *reinterpret_cast<const RoundKeys*>(keys), net.history != 0},
             net,
             reinterpret_cast<const typename Tier::Weight*>(weights),
             reinterpret_cast<const float*>(starts),
             rings + warp * 2 * stage_bytes(net),
             history + threadIdx.x,
             tile * Warp::kSamples}
            .run();
}

}  // namespace df::cuda
