// The whole chain for plans of linear layers of any width, on tensor cores: mma.sync m16n8k16, sm_80 and
// later.
//
// A block owns up to eight tiles of 16 samples, and its eight warps share each layer's columns. So a weight
// is used by one warp alone, for all samples of the block: the warp's weights come as one endless stream of
// pieces in the order of use, from L2 into slots of its own in shared memory, and no barrier is needed to
// read them; the stream runs on through barriers, activations and updates. What one load feeds grows with the
// block's samples, so a block has as many as its activations leave room for.
// Activations lie in shared memory as operands, in the order of lanes: of an accumulator packed in pairs each
// lane has what the same lane reads of the next layer's operand. One buffer is read, the other written.
// x, F and the history of a thread's elements are its own, in shared memory as well.
//
// A sample's result depends on its row alone, not on the block's tiles or the grid.
#pragma once
#include "mma_tiers.cuh"
#include "state_lane.cuh"
#include "wide_kernels.h"

namespace df::cuda {

// A warp's weights, piece by piece, again and again. A lane reads what it loaded itself.
struct WeightStream {
    const uint4* const first;  // of this lane, as the ring
    const int pieces;
    uint4* const ring;
    int next = 0, slot = 0;  // the piece to load, the slot to read

    __device__ __forceinline__ void load(int to) {
        const uint4* from = first + int64_t(next) * (kPieceBytes / 16);
        uint4* at = ring + to * (kPieceBytes / 16);
        ptx::cp_async16(at, from);
        ptx::cp_async16(at + 32, from + 32);
        ptx::cp_async_commit();
        next = next + 1 == pieces ? 0 : next + 1;
    }

    __device__ __forceinline__ void start() {
        for (int i = 0; i < kPieceStages - 1; ++i) load(i);
    }

    __device__ __forceinline__ void take(uint4 (&piece)[2]) {
        ptx::cp_async_wait<kPieceStages - 2>();
        piece[0] = ring[slot * (kPieceBytes / 16)];
        piece[1] = ring[slot * (kPieceBytes / 16) + 32];
        load(slot ? slot - 1 : kPieceStages - 1);  // the slot read before
        slot = slot + 1 == kPieceStages ? 0 : slot + 1;
    }
};

// Which columns of a layer, in eights, and which tiles of samples a warp computes
struct Share {
    int column, end;
    int tile, step;
};

__device__ __forceinline__ Share share_of(const WideLayer& layer, int warp) {
    const int group = warp % layer.groups;
    return {group * layer.out_tiles / layer.groups, (group + 1) * layer.out_tiles / layer.groups,
            warp / layer.groups, kWideWarps / layer.groups};
}

template <class Tier>
struct WideBlock : StateLane<kWideThreads> {
    using Lane = StateLane<kWideThreads>;
    using Operand = typename Tier::Operand;
    using Accumulator = typename Tier::Accumulator;
    static constexpr int M = kWideTiles, C = Tier::kPieceWeights, kLaneWords = sizeof(Operand) / 16;
    static constexpr int kTogether = M / kLaneWords;  // operands that are read at a time, by registers

    const WideView& net;
    const WideMemory memory;
    unsigned char* const shared;
    const int tiles, warp;
    WeightStream weights;
    int64_t first = 0;

    template <class T>
    __device__ __forceinline__ T* at(int64_t offset) const {
        return reinterpret_cast<T*>(shared + offset);
    }
    // This lane's words of an operand
    __device__ __forceinline__ uint4* operand(int buffer, int k, int m) const {
        return at<uint4>(buffer ? memory.buffers[1] : memory.buffers[0]) + (k * tiles + m) * 32 * kLaneWords +
               lane;
    }
    // This thread's four elements of its i-th tile
    __device__ __forceinline__ void get(int64_t offset, int i, float (&v)[4]) const {
        const float4 w = at<float4>(offset)[i * kWideThreads + int(threadIdx.x)];
        v[0] = w.x;
        v[1] = w.y;
        v[2] = w.z;
        v[3] = w.w;
    }
    __device__ __forceinline__ void put(int64_t offset, int i, const float (&v)[4]) const {
        at<float4>(offset)[i * kWideThreads + int(threadIdx.x)] = make_float4(v[0], v[1], v[2], v[3]);
    }
    __device__ __forceinline__ float* history_of(int i) const {
        return at<float>(memory.history) + i * 12 * kWideThreads + int(threadIdx.x);
    }

    // f(its number, first sample, m, c) for the tiles of x that this warp has
    template <class Each>
    __device__ __forceinline__ void each_tile(Each f) const {
        const Share own = share_of(net.layers[net.n_layers - 1], warp);
        int i = 0;
#pragma unroll 1
        for (int m = own.tile; m < tiles; m += own.step)
#pragma unroll 1
            for (int c = own.column; c < own.end; ++c) f(i++, first + 16 * m, m, c);
    }

    // ---- the network

    __device__ __forceinline__ void input(float c_in) const {
        each_tile([&](int i, int64_t, int m, int c) {
            float u[4];
            get(memory.x, i, u);
#pragma unroll
            for (int r = 0; r < 4; ++r) u[r] = c_in * u[r];
            Operand in;
            Tier::pack(u, 0, in);
            Tier::store(in, 0, operand(0, c / 2, m), c % 2);
            if (c % 2 || c + 1 < net.layers[net.n_layers - 1].out_tiles) return;
            Tier::pack_rest(u, in);
            Tier::store(in, 1, operand(0, c / 2, m), 1);
        });
    }

    // acc += the products of all inputs and T columns, of which with T = 4 the last may be missing
    template <int T>
    __device__ __forceinline__ void multiply(Accumulator (&acc)[M][C], int buffer, int in_tiles,
                                             uint32_t rows, int columns) {
#pragma unroll 1
        for (int k = 0; k < in_tiles; k += C / T) {
            uint4 piece[2];
            weights.take(piece);
#pragma unroll
            for (int i = 0; i < C / T; ++i) {
                if (i && k + i >= in_tiles) break;
#pragma unroll
                for (int m = 0; m < M; m += kTogether)
                    multiply_by<T>(acc, m, buffer, k + i, piece, i, rows, columns);
            }
        }
    }

    // The products of one input's operands of some tiles: all are read first
    template <int T>
    __device__ __forceinline__ void multiply_by(Accumulator (&acc)[M][C], int first_tile, int buffer, int k,
                                                const uint4 (&piece)[2], int i, uint32_t rows, int columns) {
        Operand in[kTogether];
#pragma unroll
        for (int m = 0; m < kTogether; ++m)
            if (rows >> (first_tile + m) & 1) in[m] = Tier::load(operand(buffer, k, first_tile + m));
#pragma unroll
        for (int m = 0; m < kTogether; ++m) {
            if (!(rows >> (first_tile + m) & 1)) continue;
#pragma unroll
            for (int j = 0; j < T; ++j)
                if (j < 3 || columns == 4)
                    Tier::multiply(acc[first_tile + m][j], in[m], Tier::weight_of(piece, i * T + j));
        }
    }

    __device__ __forceinline__ void products(Accumulator (&acc)[M][C], int buffer, int in_tiles,
                                             uint32_t rows, int columns) {
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int j = 0; j < C; ++j) acc[m][j] = Tier::start(make_float2(0, 0), make_float2(0, 0));
        if (columns > C / 2)
            multiply<C>(acc, buffer, in_tiles, rows, columns);
        else if (C > 2 && columns == 2)
            multiply<2>(acc, buffer, in_tiles, rows, columns);
        else
            multiply<1>(acc, buffer, in_tiles, rows, columns);
    }

    // The values of a layer's columns c .. c + columns - 1 of eight
    __device__ __forceinline__ void columns_of(int index, const Share& own, int c, int columns, int branch,
                                               uint32_t table) {
        const WideLayer& layer = net.layers[index];
        uint32_t rows = 0;
        for (int m = own.tile; m < tiles; m += own.step) rows |= 1u << m;
        const auto* starts = reinterpret_cast<const float*>(a.image + layer.starts) +
                             int64_t(table) * layer.start_stride + 8 * c + 2 * t;
        float2 start[C];
#pragma unroll
        for (int j = 0; j < C; ++j)
            start[j] = j < columns ? *reinterpret_cast<const float2*>(starts + 8 * j) : make_float2(0, 0);

        Accumulator acc[M][C];
        products(acc, index % 2, layer.in_tiles, rows, columns);
        float v[M * C * 4];
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int j = 0; j < C; ++j) {
                float w[4];
                Tier::values(acc[m][j], w);
#pragma unroll
                for (int r = 0; r < 4; ++r) v[(m * C + j) * 4 + r] = w[r] + (r % 2 ? start[j].y : start[j].x);
            }
        if (layer.class_table != kAbsent) add_classes(layer, rows, c, columns, branch, v);
        Tier::activate(Function(layer.function), layer.param, v);
        finish(index, own, rows, c, columns, v);
    }

    __device__ __forceinline__ void add_classes(const WideLayer& layer, uint32_t rows, int c, int columns,
                                                int branch, float (&v)[M * C * 4]) const {
        const auto* table = reinterpret_cast<const float*>(a.image + layer.class_table) + 8 * c + 2 * t;
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                if (!(rows >> m & 1)) continue;
                const int32_t label =
                    branch ? a.program.n_classes - 1 : at<int32_t>(memory.labels)[16 * m + g + 8 * half];
                const float* row = table + int64_t(label) * 8 * layer.out_tiles;
#pragma unroll
                for (int j = 0; j < C; ++j) {
                    if (j >= columns) continue;
                    const float2 w = *reinterpret_cast<const float2*>(row + 8 * j);
                    v[(m * C + j) * 4 + 2 * half] += w.x;
                    v[(m * C + j) * 4 + 2 * half + 1] += w.y;
                }
            }
    }

    // Values to where the next layer reads them; of the last layer to F
    __device__ __forceinline__ void finish(int index, const Share& own, uint32_t rows, int c, int columns,
                                           const float (&v)[M * C * 4]) const {
        const bool last = index + 1 == net.n_layers;
        int number = c - own.column;  // of the first tile of these columns
#pragma unroll
        for (int m = 0; m < M; ++m) {
            if (!(rows >> m & 1)) continue;
#pragma unroll
            for (int j = 0; j < C; ++j) {
                if (j >= columns) continue;
                const float* from = v + (m * C + j) * 4;
                const float values[4] = {from[0], from[1], from[2], from[3]};
                if (last) {
                    put(memory.F, number + j, values);
                    continue;
                }
                Operand out;
                Tier::pack(values, 0, out);
                Tier::store(out, 0, operand((index + 1) % 2, (c + j) / 2, m), (c + j) % 2);
            }
            number += own.end - own.column;
        }
    }

    // F <- net(c_in x)
    __device__ __forceinline__ void network(float c_in, uint32_t table, int branch) {
        input(c_in);
#pragma unroll 1
        for (int index = 0; index < net.n_layers; ++index) {
            __syncthreads();  // all that the layer reads is there
            const Share own = share_of(net.layers[index], warp);
#pragma unroll 1
            for (int c = own.column; c < own.end; c += C)
                columns_of(index, own, c, own.end - c < C ? own.end - c : C, branch, table);
        }
    }

    // F(u): with guidance F = F_u + s (F_c - F_u), F_u being kept while F_c is computed
    __device__ __forceinline__ void evaluate(const StepRow& row) {
        const bool guided = a.program.branches == 2 && row.guidance != 1.0f;
#pragma unroll 1
        for (int branch = guided; branch >= 0; --branch) {
            network(row.c_in, row.table, branch);
            if (branch == 0) break;
            each_tile([&](int i, int64_t, int, int) {
                float null[4];
                get(memory.F, i, null);
                put(memory.null, i, null);
            });
            __syncthreads();  // all have left the last layer
        }
        if (!guided) return;
        each_tile([&](int i, int64_t tile, int, int) {
            float F[4], null[4];
            get(memory.F, i, F);
            get(memory.null, i, null);
#pragma unroll
            for (int r = 0; r < 4; ++r) F[r] = __fmaf_rn(guidance(row, tile, r), F[r] - null[r], null[r]);
            put(memory.F, i, F);
        });
    }

    // ---- the chain

    __device__ __forceinline__ StepRow& stage(int i) const { return at<StepRow>(memory.rows)[i % 2]; }

    __device__ __forceinline__ void begin() {
        for (int s = int(threadIdx.x); s < 16 * tiles; s += kWideThreads)
            at<int32_t>(memory.labels)[s] = label(first + s);
        each_tile([&](int i, int64_t tile, int, int c) {
            float x[4];
            Lane::begin(tile, c, x);
            put(memory.x, i, x);
            for (int k = 0; has_history && k < 12; ++k) history_of(i)[k * kWideThreads] = 0.0f;
        });
    }

    __device__ __forceinline__ void fix(int row, float signal, float noise) const {
        each_tile([&](int i, int64_t tile, int, int c) {
            float x[4];
            get(memory.x, i, x);
            Lane::fix(row, tile, c, signal, noise, x);
            put(memory.x, i, x);
        });
    }

    __device__ __forceinline__ void write(float* rows) const {
        each_tile([&](int i, int64_t tile, int, int c) {
            float x[4];
            get(memory.x, i, x);
            Lane::write(rows, tile, c, x);
        });
    }

    __device__ __forceinline__ void step(int index, const StepRow& row) const {
        uint32_t component = 0;
        const uint32_t word = step_word(uint32_t(index), kPurposeStep, uint32_t(a.program.dim), component);
        each_tile([&](int i, int64_t tile, int, int c) {
            float x[4], F[4] = {}, z[4] = {};
            get(memory.x, i, x);
            if (row.flags & kEval) get(memory.F, i, F);
            if (row.s != 0.0f && a.noise) {  // fma(0, z, x) is x
                given_noise(index, tile, c, z);
            } else if (row.s != 0.0f) {
                float v[4];
                draw<true>(word, tile, quad(c), v);
                spread(v, component, z);
            }
            update_tile<false>(row, c, F, z, x, history_of(i));
            put(memory.x, i, x);
        });
    }

    // The chain of the samples from first_sample on
    __device__ __forceinline__ void run(int64_t first_sample) {
        constexpr int kRowWords = int(sizeof(StepRow)) / 4;
        const int n_rows = a.program.n_rows, word = int(threadIdx.x);
        const uint32_t* rows = a.image + a.program.rows;
        const auto store_row = [&](int i, uint32_t value) {
            if (word < kRowWords) reinterpret_cast<uint32_t*>(&stage(i))[word] = value;
        };
        first = first_sample;
        __syncthreads();  // all have left the samples before
        store_row(0, rows[word % kRowWords]);
        begin();
        if (a.trajectory) write(a.trajectory);
#pragma unroll 1
        for (int i = 0; i < n_rows; ++i) {
            __syncthreads();  // row i is there for all, and all have left row i - 1
            const uint32_t next = rows[(i + 1 < n_rows ? i + 1 : i) * kRowWords + word % kRowWords];
            const StepRow& row = stage(i);
            if (a.fixed_mask && (row.flags & kEval))
                fix(i, a.fixed_clean ? 1.0f : row.signal, a.fixed_clean ? 0.0f : row.noise);
            if (row.flags & kEval) evaluate(row);
            step(i, row);
            if (a.fixed_mask && i + 1 == n_rows) fix(i, 1.0f, 0.0f);
            if (a.trajectory) write(a.trajectory + int64_t(i + 1) * a.n * a.program.dim);
            store_row(i + 1, next);
        }
        write(a.out);
    }
};

template <class Tier>
__global__ void __launch_bounds__(kWideThreads, 1) wide_chain(const __grid_constant__ WideArgs args) {
    const ChainArgs& a = args.chain;
    const WideView& net = args.net;
    const WideMemory memory = wide_memory(net, args.tiles);
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    unsigned char* shared = shared_memory();
    auto& keys = *reinterpret_cast<RoundKeys*>(shared + memory.keys);
    if (threadIdx.x == 0 && a.device_seed) keys = RoundKeys(*a.device_seed);
    const WeightStream weights{reinterpret_cast<const uint4*>(a.image + net.weights[warp]) + lane,
                               net.pieces[warp],
                               reinterpret_cast<uint4*>(shared + warp * kPieceStages * kPieceBytes) + lane};
    WideBlock<Tier> block{{a, keys, net.history != 0}, net, memory, shared, args.tiles, warp, weights};
    block.weights.start();
    const int64_t samples = 16 * int64_t(args.tiles);
    for (int64_t at = blockIdx.x * samples; at < a.n; at += gridDim.x * samples) block.run(at);
    ptx::cp_async_wait<0>();
}

}  // namespace df::cuda
