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
#include "row.cuh"

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

static __device__ __attribute__((noinline)) float4 shared_normal4(const RoundKeys& keys, uint32_t quad,
                                                                  uint32_t word, uint32_t low,
                                                                  uint32_t high) {
    float z[4];
    normal4<ScalarLanes>(keys, quad, word, low, high, z);
    return make_float4(z[0], z[1], z[2], z[3]);
}

// H: width of the layers, D: eights of columns of x, M: tiles of 16 samples a warp.
template <class Tier, int H, int D, int M>
struct MmaWarp {
    using Operand = typename Tier::Operand;
    using Weight = typename Tier::Weight;
    using Accumulator = typename Tier::Accumulator;
    static constexpr int kSamples = 16 * M, N = H / 8, K = H / 16, K0 = (D + 1) / 2;

    const ChainArgs& a;
    const MmaView& net;
    const Weight* const weights;
    const float* const starts;
    unsigned char* const ring;  // two stages of row and start values
    float* const history;       // of this thread: 3 values of each element, kMmaThreads apart
    const RoundKeys& device_keys;
    const int64_t first;

    const int lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
    float x[M][D][4];
    int32_t labels[M][2];

    __device__ int64_t sample(int m, int half) const { return first + 16 * m + g + 8 * half; }
    __device__ bool valid(int m, int half) const { return sample(m, half) < a.n; }
    static __device__ int half_of(int r) { return r / 2; }
    __device__ int column(int c, int r) const { return 8 * c + 2 * t + r % 2; }

    // f(m, c, r, sample, column) for the elements of x that exist
    template <class Each>
    __device__ void each(Each f) {
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int c = 0; c < D; ++c)
#pragma unroll
                for (int r = 0; r < 4; ++r)
                    if (valid(m, r / 2) && column(c, r) < a.program.dim)
                        f(m, c, r, sample(m, r / 2), column(c, r));
    }

    // ---- noise

    // The normals of a quad: of row g of tile m for even t, of row g + 8 for odd.
    // often: in the chain's loop, where the code is not shared and its keys come as constants.
    template <bool often>
    __device__ void draw(uint32_t word, int m, int quad, float (&v)[4]) const {
        const uint64_t index = a.start + uint64_t(sample(m, t % 2));
        const uint32_t low = uint32_t(index), high = uint32_t(index >> 32);
        if (often && !a.device_seed) return normal4<ScalarLanes>(a.keys, uint32_t(quad), word, low, high, v);
        const float4 z =
            shared_normal4(a.device_seed ? device_keys : a.keys, uint32_t(quad), word, low, high);
        v[0] = z.x;
        v[1] = z.y;
        v[2] = z.z;
        v[3] = z.w;
    }

    __device__ int quad(int c) const { return 2 * c + t / 2; }  // the one that holds this thread's columns

    // To each thread the normals of its four elements: neighbours swap halves of their quads. `component` is
    // not 0 in one and two dimensions only, where thread 0 of four holds all elements.
    __device__ void spread(const float (&v)[4], uint32_t component, float (&z)[4]) const {
        const float low0 = component == 0 ? v[0] : component == 1 ? v[1] : component == 2 ? v[2] : v[3];
        const float low1 = component < 2 ? v[1] : v[3];
        const bool odd = t % 2;
        const float other0 = __shfl_xor_sync(~0u, odd ? low0 : v[2], 1);
        const float other1 = __shfl_xor_sync(~0u, odd ? low1 : v[3], 1);
        z[0] = odd ? other0 : low0;
        z[1] = odd ? other1 : low1;
        z[2] = odd ? v[2] : other0;
        z[3] = odd ? v[3] : other1;
    }

    // The step's normals of eight columns of a tile; `fresh`: not from the quads drawn for the step before.
    // With up to four columns half of the threads would draw what nobody has: of two tiles they draw the
    // second.
    __device__ void noise(uint32_t word, bool fresh, uint32_t component, int m, int c, float (&quads)[M][4],
                          float (&z)[4]) const {
        if (M == 2 && a.program.dim <= 4) {
            if (m == 0 && fresh) draw<true>(word, t / 2, 0, quads[0]);
            spread(quads[0], component, z);
#pragma unroll
            for (int r = 0; m == 1 && r < 4; ++r) z[r] = __shfl_xor_sync(~0u, z[r], 2);
            return;
        }
        if (D > 1 || fresh) draw<true>(word, m, quad(c), quads[m]);
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

    template <int KT>
    __device__ void multiply(Accumulator (&acc)[M], const Operand (&in)[M][KT], const Weight* w) const {
#pragma unroll
        for (int k = 0; k < KT; ++k) {
            const Weight b = w[k * 32 + lane];
#pragma unroll
            for (int m = 0; m < M; ++m) Tier::multiply(acc[m], in[m][k], b);
        }
    }

    template <int KT>
    __device__ void hidden(int layer, const float* values, int branch, const Operand (&in)[M][KT],
                           const Weight* w, Operand (&out)[M][K]) const {
        const auto function = Function(net.function[layer]);
        const float param = net.param[layer];
#pragma unroll
        for (int n = 0; n < N; ++n) {
            Accumulator acc[M];
            start(acc, layer, values, branch, n);
            multiply(acc, in, w + n * KT * 32);
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

    __device__ void input(float c_in, Operand (&in)[M][K0]) const {
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
        const Weight* w = weights;
        {
            Operand in[M][K0];
            input(c_in, in);
            hidden(0, values_of(0, step_starts), branch, in, w, values);
            w += N * K0 * 32;
        }
#pragma unroll 1
        for (int layer = 1; layer < net.layers - 1; ++layer, w += N * K * 32) {
            Operand next[M][K];
            hidden(layer, values_of(layer, step_starts), branch, values, w, next);
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
            multiply(acc, values, w + c * K * 32);
#pragma unroll
            for (int m = 0; m < M; ++m) {
                Tier::values(acc[m], F[m][c]);
                Tier::activate(Function(net.function[last]), net.param[last], F[m][c]);
            }
        }
    }

    // F(u): with guidance F = F_u + s (F_c - F_u)
    __device__ void evaluate(const StepRow& row, const float* step_starts, float (&F)[M][D][4]) const {
        network(row.c_in, step_starts, 0, F);
        if (a.program.branches == 1 || row.guidance == 1.0f) return;
        float null[M][D][4];
        network(row.c_in, step_starts, 1, null);
#pragma unroll
        for (int m = 0; m < M; ++m) {
            const float scale[] = {guidance(row, m, 0), guidance(row, m, 1)};
#pragma unroll
            for (int c = 0; c < D; ++c)
#pragma unroll
                for (int r = 0; r < 4; ++r)
                    F[m][c][r] = __fmaf_rn(scale[r / 2], F[m][c][r] - null[m][c][r], null[m][c][r]);
        }
    }

    __device__ float guidance(const StepRow& row, int m, int half) const {
        return a.guidance && valid(m, half) ? a.guidance[sample(m, half)] : row.guidance;
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
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half)
                labels[m][half] = a.labels && valid(m, half) ? a.labels[sample(m, half)] : a.label;
#pragma unroll
            for (int c = 0; c < D; ++c) {
                float v[4] = {};
                if (!a.x_T) draw<false>(uint32_t(kPurposeInitial) << 28, m, quad(c), v);
                spread(v, 0, x[m][c]);
            }
        }
        if (a.x_T)
            each([&](int m, int c, int r, int64_t s, int j) { x[m][c][r] = a.x_T[s * a.program.dim + j]; });
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int c = 0; c < D; ++c)
#pragma unroll
                for (int r = 0; r < 4; ++r)
                    if (column(c, r) >= a.program.dim) x[m][c][r] = 0.0f;
        if (a.labels) check_labels();
        for (int i = 0; net.history && i < 12 * M * D; ++i) history[i * kMmaThreads] = 0.0f;
    }

    // A label that is out of range reads class 0 and makes its sample NaN.
    __device__ void check_labels() {
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                if (uint32_t(labels[m][half]) < uint32_t(a.program.n_classes)) continue;
                labels[m][half] = 0;
#pragma unroll
                for (int c = 0; c < D; ++c)
                    x[m][c][2 * half] = x[m][c][2 * half + 1] = ScalarLanes::as_float(0x7fc00000u);
            }
    }

    // Fixed coordinates take their value, at the noise level of row i, which is about to evaluate x.
    __device__ void fix(int i, float signal, float noise) {
        float z[M][D][4] = {};
        if (noise != 0.0f) {
#pragma unroll
            for (int m = 0; m < M; ++m)
#pragma unroll
                for (int c = 0; c < D; ++c) {
                    float v[4];
                    draw<false>(uint32_t(i) | uint32_t(kPurposeForward) << 28, m, quad(c), v);
                    spread(v, 0, z[m][c]);
                }
        }
        each([&](int m, int c, int r, int64_t s, int j) {
            if (a.fixed_mask[j])
                x[m][c][r] = __fmaf_rn(noise, z[m][c][r], signal * a.fixed[s * a.fixed_stride + j]);
        });
    }

    __device__ void write(float* rows) {
        each([&](int m, int c, int r, int64_t s, int j) { rows[s * a.program.dim + j] = x[m][c][r]; });
    }

    // x <- the row's update; z: this step's normals, or unused
    __device__ void update_tile(const StepRow& row, int m, int c, const float (&F)[4], const float (&z)[4]) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            float* h = history + ((m * D + c) * 4 + r) * 3 * kMmaThreads;
            Element e{x[m][c][r], {}};
            if (net.history)
                for (int k = 0; k < 3; ++k) e.h[k] = h[k * kMmaThreads];
            update(row, a.program.terms, e, F[r], 0.0f, z[r]);
            x[m][c][r] = column(c, r) < a.program.dim ? e.x : 0.0f;
            if (row.flags & kPush)
                for (int k = 0; k < 3; ++k) h[k * kMmaThreads] = e.h[k];
        }
    }

    __device__ void given_noise(int i, int m, int c, float (&z)[4]) const {
#pragma unroll
        for (int r = 0; r < 4; ++r)
            if (valid(m, r / 2) && column(c, r) < a.program.dim)
                z[r] = a.noise[(i * a.n + sample(m, r / 2)) * a.program.dim + column(c, r)];
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
#pragma unroll
            for (int m = 0; m < M; ++m)
#pragma unroll
                for (int c = 0; c < D; ++c) {
                    float z[4] = {};
                    if (draws)
                        noise(word, word != drawn, component, m, c, quads, z);
                    else if (row.s != 0.0f)
                        given_noise(i, m, c, z);
                    update_tile(row, m, c, F[m][c], z);
                }
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
        Warp{a,
             net,
             reinterpret_cast<const typename Tier::Weight*>(weights),
             reinterpret_cast<const float*>(starts),
             rings + warp * 2 * stage_bytes(net),
             history + threadIdx.x,
             *reinterpret_cast<const RoundKeys*>(keys),
             tile * Warp::kSamples}
            .run();
}

}  // namespace df::cuda
