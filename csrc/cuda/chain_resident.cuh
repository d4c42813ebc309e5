// What the kernels share whose weights are resident in shared memory and whose x and activations never leave
// the registers (chain_mma.cuh, chain_wgmma.cuh): what a block loads, and the chain of a warp.
//
// A warp owns M tiles of 16 samples. x stays in float32 in the accumulator's layout for the whole chain:
// thread (g, t) of a warp holds rows g and g + 8 of each tile and columns 8 c + 2 t, + 1 of each 8 columns c,
// so that update and noise need no exchange beyond a pair of lanes. The row of the next step and the start
// values it selects are fetched while a step runs.
//
// A sample's result depends on its row alone, not on M, the warp or the grid.
#pragma once
#include "chain_args.h"
#include "device.h"
#include "ptx.h"
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

// The parts of a block's shared memory; behind them what threads keep, where there is room.
struct Resident {
    unsigned char *weights, *starts, *rings, *keys, *kept;
};

// By all threads of the block, a barrier to follow. rings: how many; each has two stages.
__device__ __forceinline__ Resident load_resident(const ChainArgs& a, const MmaView& net, int rings) {
    Resident r;
    const int start_bytes = net.layers * net.width * 4;
    r.weights = shared_memory();
    r.starts = r.weights + net.weight_bytes;
    r.rings = r.starts + start_bytes;
    r.keys = r.rings + rings * 2 * stage_bytes(net);
    r.kept = r.keys + kKeyBytes;
    copy_to_shared(r.weights, a.image + net.weights, net.weight_bytes);
    copy_to_shared(r.starts, a.image + net.starts, start_bytes);
    ptx::cp_async_commit();
    if (threadIdx.x == 0 && a.device_seed) *reinterpret_cast<RoundKeys*>(r.keys) = RoundKeys(*a.device_seed);
    ptx::cp_async_wait<0>();
    return r;
}

// H: width of the layers, D: eights of columns of x, M: tiles of 16 samples, kThreads: of the block,
// kSharers: threads that share a ring of rows, a warp or a warpgroup.
template <int H, int D, int M, int kThreads, int kSharers>
struct ResidentChain : StateLane<kThreads> {
    using Lane = StateLane<kThreads>;
    using Lane::a, Lane::lane, Lane::t, Lane::has_history;

    const MmaView& net;
    const float* const starts;
    unsigned char* const ring;
    float* const kept;  // of this thread, kThreads apart: of each tile of x 12 values of the history, and
                        // with two branches 4 of the null branch
    int64_t first;

    float x[M][D][4] = {};
    int32_t labels[M][2] = {};

    // Of all threads of a block
    static __device__ int64_t kept_floats(const ProgramView& program, const MmaView& net) {
        return int64_t((net.history ? 12 : 0) + (program.branches == 2 ? 4 : 0)) * M * D * kThreads;
    }
    __device__ int64_t first_of(int m) const { return first + 16 * m; }
    __device__ float* history_of(int m, int c) const { return kept + 12 * (m * D + c) * kThreads; }
    __device__ float* null_of(int m, int c) const {
        return kept + ((has_history ? 12 * M * D : 0) + 4 * (m * D + c)) * kThreads;
    }

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
            if (m == 0 && fresh) Lane::template draw<true>(word, first_of(t / 2), 0, quads[0]);
            Lane::spread(quads[0], component, z);
#pragma unroll
            for (int r = 0; m == 1 && r < 4; ++r) z[r] = __shfl_xor_sync(~0u, z[r], 2);
            return;
        }
        if (D > 1 || fresh) Lane::template draw<D == 1>(word, first_of(m), Lane::quad(c), quads[m]);
        Lane::spread(quads[m], component, z);
    }

    // ---- the network

    // c_in x as the operands of the first layer
    template <class Tier, int K>
    __device__ void input(float c_in, typename Tier::Operand (&in)[M][K]) const {
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int k = 0; k < (D + 1) / 2; ++k) {
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

    // The start values of a layer: of the step's own where it has a table
    __device__ const float* values_of(int layer, const float* step_starts) const {
        const int row = net.step_layer[layer];
        return row < 0 ? starts + layer * H : step_starts + row * H;
    }

    // The values that a layer with a class table adds for a row of this thread, its columns 2 t, + 1 first
    __device__ const float* class_row(int layer, int branch, int m, int half) const {
        const int32_t label = branch ? a.program.n_classes - 1 : labels[m][half];
        return reinterpret_cast<const float*>(a.image + net.class_table[layer]) + int64_t(label) * H + 2 * t;
    }

    // F(u), by network(c_in, step_starts, branch, F): with guidance F = F_u + s (F_c - F_u), the network's
    // code being there once
    template <class Network>
    __device__ void evaluate(const StepRow& row, const float* step_starts, Network network,
                             float (&F)[M][D][4]) const {
        const bool guided = a.program.branches == 2 && row.guidance != 1.0f;
#pragma unroll 1
        for (int branch = guided; branch >= 0; --branch) {
            network(row.c_in, step_starts, branch, F);
            if (branch == 0) break;
            each_tile([&](int m, int c) {
#pragma unroll
                for (int r = 0; r < 4; ++r) null_of(m, c)[r * kThreads] = F[m][c][r];
            });
        }
        if (!guided) return;
        each_tile([&](int m, int c) {
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const float null = null_of(m, c)[r * kThreads];
                F[m][c][r] = __fmaf_rn(Lane::guidance(row, first_of(m), r), F[m][c][r] - null, null);
            }
        });
    }

    // ---- the chain

    // All that share the ring are there.
    static __device__ void meet() {
        if constexpr (kSharers == 32)
            __syncwarp();
        else
            ptx::barrier_sync(1 + int(threadIdx.x) / kSharers, kSharers);
    }

    __device__ unsigned char* stage(int i) const { return ring + i % 2 * stage_bytes(net); }

    // Row i and the start values it selects, to their stage.
    __device__ void fetch(int i, uint32_t table) const {
        unsigned char* to = stage(i);
        const auto* row = reinterpret_cast<const unsigned char*>(a.image + a.program.rows) +
                          int64_t(i) * int64_t(sizeof(StepRow));
        const auto* values = reinterpret_cast<const unsigned char*>(a.image + net.step_starts) +
                             int64_t(table) * net.stepped * H * 4;
        constexpr int kRow = int(sizeof(StepRow));
        for (int at = 16 * (int(threadIdx.x) % kSharers); at < stage_bytes(net); at += 16 * kSharers)
            ptx::cp_async16(to + at, at < kRow ? row + at : values + (at - kRow));
        ptx::cp_async_commit();
    }

    __device__ void begin() {
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                labels[m][half] = Lane::label(Lane::sample(first_of(m), half));
        each_tile([&](int m, int c) { Lane::begin(first_of(m), c, x[m][c]); });
        for (int i = 0; has_history && i < 12 * M * D; ++i) kept[i * kThreads] = 0.0f;
    }

    __device__ void fix(int i, float signal, float noise) {
        each_tile([&](int m, int c) { Lane::fix(i, first_of(m), c, signal, noise, x[m][c]); });
    }

    __device__ void write(float* rows) {
        each_tile([&](int m, int c) { Lane::write(rows, first_of(m), c, x[m][c]); });
    }

    template <class Network>
    __device__ void run(Network network) {
        const auto* rows = reinterpret_cast<const StepRow*>(a.image + a.program.rows);
        const int n_rows = a.program.n_rows;
        uint32_t next_table = rows[n_rows > 1 ? 1 : 0].table, drawn = ~0u;
        float quads[M][4] = {};  // what was drawn last, where one call serves several steps (D = 1)
        meet();                  // all have left the ring's last row of the tile before
        fetch(0, rows[0].table);
        begin();
        if (a.trajectory) write(a.trajectory);
#pragma unroll 1
        for (int i = 0; i < n_rows; ++i) {
            if constexpr (kSharers == kWarpgroup) {  // registers are scarce: no addresses kept for all rows
                ptx::forget(first);
                ptx::forget(Lane::t);
                ptx::forget(Lane::g);
            }
            ptx::cp_async_wait<0>();
            meet();  // row i is there for all, and all have left row i - 1
            if (i + 1 < n_rows) fetch(i + 1, next_table);
            next_table = rows[i + 2 < n_rows ? i + 2 : n_rows - 1].table;
            const auto& row = *reinterpret_cast<const StepRow*>(stage(i));
            const auto* step_starts = reinterpret_cast<const float*>(&row + 1);
            if (a.fixed_mask && (row.flags & kEval))
                fix(i, a.fixed_clean ? 1.0f : row.signal, a.fixed_clean ? 0.0f : row.noise);
            float F[M][D][4] = {};
            if (row.flags & kEval) evaluate(row, step_starts, network, F);
            uint32_t component = 0;
            const bool draws = row.s != 0.0f && !a.noise;  // fma(0, z, x) is x
            const uint32_t word =
                draws ? step_word(uint32_t(i), kPurposeStep, uint32_t(a.program.dim), component) : drawn;
            each_tile([&](int m, int c) {
                float z[4] = {};
                if (draws)
                    noise(word, word != drawn, component, m, c, quads, z);
                else if (row.s != 0.0f)
                    Lane::given_noise(i, first_of(m), c, z);
                Lane::template update_tile<(D > 1)>(row, c, F[m][c], z, x[m][c], history_of(m, c));
            });
            drawn = word;
            if (a.fixed_mask && i + 1 == n_rows) fix(i, 1.0f, 0.0f);
            if (a.trajectory) write(a.trajectory + int64_t(i + 1) * a.n * a.program.dim);
        }
        write(a.out);
    }
};

}  // namespace df::cuda
