// The Plan: all that crosses the border between Python and the kernels. Plain structs, shared by CPU and
// CUDA. Layout (little endian), written by diffusion_fast/plan.py and validated again here:
//   PlanHeader | StepRow[n_rows] | value widths, u32, padded to 64 bytes | TileOp[n_ops] | float
//   blob[n_floats]
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace df {

constexpr uint32_t kMaxDim = 256, kMaxWidth = 2048, kMaxLinears = 16, kMaxRows = 1u << 20,
                   kMaxTables = 1u << 20;

struct PlanHeader {
    char magic[8];  // "DFPLAN\r\n"
    uint32_t version, dim, n_rows, n_ops, n_tables, n_classes, n_values, out_value, terms, branches;
    uint64_t n_floats;
    uint32_t reserved[2];
};

enum RowFlags : uint32_t { kEval = 1, kPush = 2 };

// One row of the sampler's table:
//   u = c_in x;  F = net(u, tables[table]) if eval;  m = p_x x + p_F F, clamped to [-clip, clip]
//   x <- a x + b m + e F + c1 h1 + c2 h2 + c3 h3 + s z;   if push: h3 <- h2, h2 <- h1, h1 <- m
struct StepRow {
    float c_in, p_x, p_F, clip, a, b, e, c1, c2, c3, s;
    uint32_t table, flags;
    float guidance;
    uint32_t reserved[2];
};

// Which terms occur anywhere in the table; the others are skipped, the same way in every kernel and twin.
enum Terms : uint32_t {
    kTermCin = 1 << 0,
    kTermPx = 1 << 1,
    kTermPF = 1 << 2,
    kTermClip = 1 << 3,
    kTermA = 1 << 4,
    kTermB = 1 << 5,
    kTermE = 1 << 6,
    kTermC1 = 1 << 7,
    kTermC2 = 1 << 8,
    kTermC3 = 1 << 9,
    kTermS = 1 << 10,
    kTermPush = 1 << 11,
    kTermsAll = (1 << 12) - 1,
};

enum class OpKind : uint32_t { kLinear = 1 };

enum class Activation : uint32_t {
    kIdentity = 0,
    kRelu,
    kLeakyRelu,  // param = negative slope
    kElu,        // param = alpha
    kTanh,
    kSigmoid,
    kSilu,
    kGelu,
    kGeluTanh,
    kSoftplus,
    kMish,
    kCount
};

// y[j] = act(init_j + sum_k w[j][k] x[k]): one fma chain per output, init first, k ascending, in every
// kernel; beyond 128 inputs each further 128 are a chain from 0, added to what stands (cpu/linear.h). init_j
// = bias[j] + step_table[row.table][j] + class_table[label][j], added in this order where present.
struct TileOp {
    uint32_t kind, activation, src, dst, n_in, n_out;
    float act_param;
    uint32_t reserved;
    int64_t weight, bias, step_table, class_table;  // offsets in floats into the blob, -1 = absent
};

static_assert(sizeof(PlanHeader) == 64 && sizeof(StepRow) == 64 && sizeof(TileOp) == 64, "wire layout");

struct Plan {
    PlanHeader header;
    std::vector<StepRow> rows;
    std::vector<uint32_t> widths;
    std::vector<TileOp> ops;
    std::vector<float> blob;
};

// Validates every field before it is used; throws std::invalid_argument that names the field.
Plan parse_plan(const uint8_t* bytes, size_t size);

}  // namespace df
