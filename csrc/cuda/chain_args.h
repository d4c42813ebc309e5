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
