// What the kernels of one instruction set offer, and the plain structs they are called with. The sources
// behind it (kernels.cpp and the headers it includes) are compiled once per instruction set and picked at run
// time (dispatch.cpp).
#pragma once
#include <cstdint>

#include "../step_args.h"
#include "train.h"

namespace df::cpu {

// One tile op; weights and tables packed for an instruction set.
struct PackedOp {
    OpKind kind;
    uint32_t function;  // a Function, BinaryFunction, NormFunction or ReduceFunction
    float param;
    int n_in, n_out, n_out_padded;  // padded to whole vectors
    int extra;                      // as in TileOp, but a value's slot
    const float* blocks;  // tile path: outputs in blocks (the last may be narrower), each [k][block]
    const float* rows;    // few-sample path: panels of outputs, each [k][panel]
    const uint32_t *pair_blocks, *pair_rows;  // the same in pairs of bfloat16, k counting pairs; or null
    const float* bias;                        // (n_out_padded), or null
    const float* step_table;                  // (n_tables, n_out_padded), or null
    const float* class_table;                 // (n_classes, n_out_padded), or null
    const float* weight;                      // kNorm: (n_out_padded), or null
    const int32_t* index;                     // kGather: (n_in)
    int src, dst;  // slots: buffers shared by values whose lifetimes do not meet; 0 is the net's input
    bool differs;  // between the branches of a guided plan; what does not is computed once for both
};

// Vectors of outputs in the next panel of PackedOp.rows, with `left` of them to come.
constexpr int panel_vectors(int left) { return left >= 8 ? 8 : left >= 4 ? 4 : 1; }

// A plan ready to run: pointers into storage owned by Program (program.h).
struct ProgramView {
    const StepRow* rows;
    const PackedOp* ops;
    const int* slot_width;      // padded widths
    const bool* slot_differs;   // whether the branches need a buffer each
    const float* null_context;  // (n_context), or null
    int n_rows, n_ops, n_prologue, n_slots, out_slot, context_slot;
    int dim, dim_padded;  // padded to whole vectors and whole quads
    int n_classes, n_context, branches;
    int pairs;     // of inputs of the widest layer that has pairs; 0 without one
    int low_rows;  // the first rows, which multiply pairs where there are some
    uint32_t terms;
    bool thresholds;  // some row has a quantile
    bool wide;        // runs on tiles of the wide shape
};

// One grid of a table (lookup.h). A sample's position along an axis is scale x + shift, the nodes being at
// the whole numbers from 0 to cells; outside of them the network itself is run.
struct Grid {
    float scale[2], shift[2];
    int32_t cells[2];
    int32_t class_floats;  // from one class to the next
    int64_t offset;        // of class 0, in floats
};

struct TablesView {
    const Grid* grids;
    const int32_t* of_row;  // (n_rows) grids of rows
    const float* values;
    int block;  // samples that take a row together
};

struct ChainArgs {
    ProgramView program;
    const TablesView* tables;  // or null: the network in every row
    float* out;                // (n, dim)
    const float* x_T;          // (n, dim), or null: drawn from the stream
    const float* noise;        // (n_rows, n, dim), or null: drawn from the stream
    float* trajectory;         // (n_rows + 1, n, dim), or null
    const int32_t* labels;     // (n), or null
    int32_t label;             // used where labels is null
    const float* guidance;     // (n) scales in place of the rows' own, or null
    const float* context;      // (n, n_context), or one row for all samples
    int64_t context_stride;
    // Fixed coordinates, or null: where the mask (dim) is not 0, x is set to the value, with the row's noise
    // unless clean, before each evaluation, and to the value itself in the end.
    const uint8_t* fixed_mask;
    const float* fixed;  // (n, dim), or one row for all samples
    int64_t fixed_stride;
    bool fixed_clean;
    int64_t n;
    uint64_t start, seed;
    // Called before every step of every tile; false, and false from then on, stops the chain.
    bool (*keep_going)(void*);
    void* watcher;
};

// Cubic interpolation for `count` samples, feature-major: element j of sample l at x[j * S + l].
struct LookupArgs {
    const Grid* grid;
    const float* values;
    const int32_t* labels;  // (S) of each sample, or null
    int32_t label;          // used where labels is null; 0 without classes
    const float* x;
    float* F;
    int32_t* outside;  // (count): which of the samples are not on the grid
    int dim, S, count;
};

constexpr int kStatisticsRows = 2, kStatisticsPadding = 16;

// Outputs computed at once, and the most samples in a tile.
struct TileSize {
    int block, samples;
};

struct Kernels {
    const char* name;
    int lanes;             // SIMD width
    bool bfloat16;         // has an instruction for products of bfloat16
    TileSize usual, wide;  // the same where one shape is the best for all programs
    // Floats of scratch that a tile needs, or with tables a block (64-byte aligned).
    int64_t (*scratch_floats)(const ChainArgs&);
    // The whole chain for samples [first, first + count), count <= the tile's or the block's; false if
    // stopped.
    bool (*chain)(const ChainArgs&, float* scratch, int64_t first, int count);
    // The network of a row at points [first, first + count) of x_T: guided F to out; false if stopped.
    bool (*network)(const ChainArgs&, float* scratch, int row, int64_t first, int count);
    int (*lookup)(const LookupArgs&);  // returns how many are outside; S: whole vectors
    // Elements [quad_begin, quad_end) of the step, in quads of four elements of one sample.
    void (*step)(const StepArgs&, int64_t quad_begin, int64_t quad_end);
    // The factor and the threshold of samples [begin, end), as the row asks; scratch has room for
    // kStatisticsRows rows of dim, each padded to kStatisticsPadding floats.
    void (*step_statistics)(const StepArgs&, int64_t begin, int64_t end, float* scratch, float* factor,
                            float* threshold);
    void (*noise)(const NoiseArgs&, int64_t quad_begin, int64_t quad_end);
    void (*apply)(Function, float param, float* y, int64_t count);  // count: a multiple of lanes
    // Runs products on registers only, fused multiply-adds or those of pairs; returns how many it ran.
    double (*product_burst)(bool pairs, int64_t iterations, int chains);
    TrainKernels train;
};

const Kernels& kernels();                   // the chosen instruction set: DIFFUSION_FAST_ISA, else the best
const Kernels& kernels_named(const char*);  // throws std::invalid_argument with the usable names
constexpr int kMostIsas = 4;
int usable_isas(const Kernels* out[kMostIsas]);  // best first

}  // namespace df::cpu
