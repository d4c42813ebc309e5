// Plain structs that the host's packing (program.cpp) and the chain kernels share.
#pragma once
#include "../noise.h"
#include "../plan.h"

namespace df::cuda {

// A program's image is one block of memory, read-only on the device: rows, ops, weights and tables. Offsets
// into it count 4-byte words from its start; kAbsent where there is none.
constexpr int64_t kAbsent = -1;

// Outputs of a linear layer that one thread computes side by side. Weights lie in blocks of as many outputs,
// each [k][kOutputs], the last block filled up with zeros.
constexpr int kOutputs = 8;
constexpr int kGeneralThreads = 256;
constexpr int kKeyBytes = 128;  // of shared memory, for the round keys, before the workspace

// One tile op. Values lie in a tile's workspace, feature-major, [feature][sample]; src, dst and extra are
// features from its start, of each branch.
struct ImageOp {
    OpKind kind;
    uint32_t function;
    float param;
    int32_t n_in, n_out;
    int32_t groups;  // kNorm, kReduce
    int32_t differs;
    int32_t src[2], dst[2], extra[2];  // extra: the value added or the second operand, -1 for none
    int32_t reserved;
    int64_t weight, bias, step_table, class_table;
};
static_assert(sizeof(ImageOp) == 88, "image layout");

// What is the same for every call. Offsets of buffers: features of the workspace; u is x's own where the
// rows have no c_in.
struct ProgramView {
    int64_t rows, ops, null_context;
    int32_t n_rows, n_ops, n_prologue, n_classes, n_context, branches, dim;
    uint32_t terms;
    int32_t x, u, z, m, history, output[2], context[2];
    int32_t workspace;  // features in all
};

// ---- plans of linear layers alone, on tensor cores (chain_mma.cuh)

constexpr int kMaxLayers = 8;
constexpr int kMmaThreads = 128;

// Every layer is `width` wide, its weights and start values filled up with zeros. The start value of a layer
// with a step table lies in step_starts, the bias added already; of another in starts.
struct MmaView {
    int64_t weights;                  // fragments of all layers, in the order of the warps' reads
    int64_t starts;                   // (layers, width)
    int64_t step_starts;              // (n_tables, stepped, width)
    int64_t class_table[kMaxLayers];  // (n_classes, width)
    uint32_t function[kMaxLayers];
    float param[kMaxLayers];
    int32_t step_layer[kMaxLayers];  // which row of step_starts, -1: none
    int32_t layers, stepped, width;
    int32_t weight_bytes;
    int32_t history;  // whether the rows have one
};

// ---- the same view by wgmma (chain_wgmma.cuh): layers of 128, x of 8 or 64 columns

constexpr int kWarpgroup = 128;    // threads
constexpr int kWgmmaSamples = 64;  // of a warpgroup

// What registers allow: the columns of a layer that a warpgroup computes at a time, and the threads of a
// block at most. parts: into which a value is split.
constexpr int wgmma_chunk(int parts) { return parts == 2 ? 64 : 128; }
constexpr int wgmma_threads(int parts, int eights) {
    return (parts == 1 && eights == 1 ? 3 : 2) * kWarpgroup;
}

// ---- wider ones, on tensor cores with weights that stream through shared memory (chain_wide.cuh)

constexpr int kWideWarps = 8, kWideThreads = 32 * kWideWarps;
constexpr int kWideTiles = 8;      // of 16 samples, the most that a block has, by registers
constexpr int kPieceBytes = 1024;  // of a warp's weights: what it loads at a time
constexpr int kPieceStages = 3;    // one that is read, the others under way

// The warps share a layer's columns among `groups` (1, 2, 4 or 8) of them, and rows among those of a group.
struct WideLayer {
    int64_t starts, class_table;  // rows of 8 out_tiles values
    int32_t start_stride;         // words from one row of starts to the next step's, 0: one for all
    int32_t in_tiles, out_tiles;  // operands of 16 inputs, tiles of 8 outputs
    int32_t groups;
    uint32_t function;
    float param;
};

struct WideView {
    WideLayer layers[kMaxLayers];
    int64_t weights[kWideWarps];  // pieces of each warp, in the order of its reads
    int32_t pieces[kWideWarps];
    int32_t n_layers, history, branches;
    int32_t operand_bytes;    // of a warp's 16 x 16 values
    int32_t buffer_tiles[2];  // operands side by side in each buffer of activations
};

// Where things lie in a block's shared memory, in bytes from its start; the weights come first.
struct WideMemory {
    int64_t buffers[2];
    int64_t x, F, null, history;  // four values of each thread for each of its tiles, 12 of the history
    int64_t labels, rows, keys, bytes;
};

// tiles: of 16 samples, of the block
DF_INLINE WideMemory wide_memory(const WideView& v, int tiles) {
    const WideLayer& last = v.layers[v.n_layers - 1];
    const int row_groups = kWideWarps / last.groups;
    const int64_t own =
        int64_t((last.out_tiles + last.groups - 1) / last.groups) * ((tiles + row_groups - 1) / row_groups);
    const int64_t state = own * kWideThreads * 16;
    WideMemory m{};
    m.buffers[0] = kWideWarps * kPieceStages * kPieceBytes;
    m.buffers[1] = m.buffers[0] + int64_t(v.buffer_tiles[0]) * tiles * v.operand_bytes;
    m.x = m.buffers[1] + int64_t(v.buffer_tiles[1]) * tiles * v.operand_bytes;
    m.F = m.x + state;
    m.null = m.F + state;
    m.history = m.null + (v.branches == 2 ? state : 0);
    m.labels = m.history + (v.history ? 3 * state : 0);
    m.rows = m.labels + tiles * 16 * 4;
    m.keys = m.rows + 2 * int64_t(sizeof(StepRow));
    m.bytes = m.keys + kKeyBytes;
    return m;
}

// One call. Device pointers; null where not given. As cpu::ChainArgs, which says what each is.
struct ChainArgs {
    ProgramView program;
    const uint32_t* image;
    float* scratch;  // the workspaces of all blocks, or null: in shared memory
    float* out;
    const float *x_T, *noise;
    float* trajectory;
    const int32_t* labels;
    const float *guidance, *context;
    const uint8_t* fixed_mask;
    const float* fixed;
    int64_t context_stride, fixed_stride, n;
    uint64_t start;
    const uint64_t* device_seed;  // read when the kernel runs, in place of the keys
    int32_t label, fixed_clean;
    RoundKeys keys;
};

}  // namespace df::cuda
