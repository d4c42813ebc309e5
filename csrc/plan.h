// The Plan: all that crosses the border between Python and the kernels. Plain structs, shared by CPU and
// CUDA. Layout (little endian), written by diffusion_fast/plan.py and validated again here:
//   PlanHeader | StepRow[n_rows] | value widths, u32, padded to 64 bytes | TileOp[n_ops] | float
//   blob[n_floats]
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace df {

constexpr uint32_t kPlanVersion = 3, kMaxDim = 256, kMaxWidth = 2048, kMaxOps = 256, kMaxRows = 1u << 20,
                   kMaxTables = 1u << 20;

struct PlanHeader {
    char magic[8];  // "DFPLAN\r\n"
    uint32_t version, dim, n_rows, n_ops, n_tables, n_classes, n_values, out_value, terms, branches;
    uint64_t n_floats;
    uint32_t n_context;   // width of value 1, a sample's context; 0 without
    uint32_t n_prologue;  // the first ops, which read neither x nor the step: once for a sample's whole chain
    int64_t null_context;  // offset of the second branch's context, -1: the sample's own
    uint64_t reserved;
};

enum RowFlags : uint32_t { kEval = 1, kPush = 2 };

// One row of the sampler's table:
//   u = c_in x;  F = net(u, tables[table]) if eval;  m = p_x x + p_F F, clamped to [-clip, clip]
//   x <- a x + b m + e F + c1 h1 + c2 h2 + c3 h3 + s z;   if push: h3 <- h2, h2 <- h1, h1 <- m
struct StepRow {
    float c_in, p_x, p_F, clip, a, b, e, c1, c2, c3, s;
    uint32_t table, flags;
    float guidance;  // s of F = u + s (c - u), where the plan has two branches
    float rescale;   // phi: F <- (phi std(c) / std(F) + 1 - phi) F over one sample; 0 for none
    float
        quantile;  // m <- clamp(m, -q, q) / q, q the quantile of |m| over one sample in [1, clip]; 0 for none
    float signal, noise;  // x = signal x0 + noise z where the row evaluates, for fixed coordinates
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

// What an operation computes from values (vectors of features of one sample), init being
//   init_j = bias[j] + step_table[row.table][j] + class_table[label][j], added in this order where present:
enum class OpKind : uint32_t {
    kLinear = 1,  // y[j] = f(init_j + sum_k w[j][k] x[k]), init_j plus a value's feature j where one is named
    kTable,       // y[j] = init_j, or of a joint table class_table[row.table * n_classes + label][j]
    kMap,         // y[j] = f(x[j]); with its slope, y[n_in + j] = f'(x[j]) too
    kBinary,      // y[j] = x[j] o x2[j]
    kNorm,        // y = norm of each group of neighbouring features, times w, plus bias, where present
    kReduce,      // y[g] = sum or mean of group g
    kGather,      // y[offset + j] = x[index[j]], j < n_in; several of them may fill one value
};

// f(x, param): the activations, then what else modules do to single features.
enum class Function : uint32_t {
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
    kSin,
    kCos,
    kExp,
    kLog,
    kSqrt,
    kAbs,
    kReciprocal,
    kPow,       // x^param
    kClampMin,  // max(x, param)
    kClampMax,
    kAddConst,
    kMulConst,
    kReluSlope,  // the derivatives of the activations, softplus' being kSigmoid
    kLeakyReluSlope,
    kEluSlope,
    kTanhSlope,
    kSigmoidSlope,
    kSiluSlope,
    kGeluSlope,
    kGeluTanhSlope,
    kMishSlope,
    kExponential,  // param^x, param > 0
    kCount
};
enum class TableFunction : uint32_t { kSum = 0, kJoint, kCount };
enum class BinaryFunction : uint32_t { kAdd = 0, kSub, kMul, kDiv, kCount };
enum class NormFunction : uint32_t { kLayerNorm = 0, kRmsNorm, kSoftmax, kCount };  // param: epsilon
enum class ReduceFunction : uint32_t { kSum = 0, kMean, kCount };

// A linear op is one fma chain per output, init first, k ascending, in every kernel; beyond 128 inputs each
// further 128 are a chain from 0, added to what stands (cpu/linear.h). Sums over features are taken in 16
// parts, feature j in part j mod 16, and the parts in halves (cpu/groups.h).
//
// A chain of 512 terms can round more than twice as much as torch's sums by blocks; with 128 none of 216
// random nets of widths 400 to 2048 did (256: four). 64-264-264-64 ran at 94 % of the peak before, in another
// run, and at 92 % with it.
constexpr int kChain = 128;

struct TileOp {
    uint32_t kind, function, src, dst, n_in, n_out;
    float param;
    uint32_t extra;  // kLinear: the value added, 0 for none. kBinary: x2. kNorm, kReduce: how many groups.
                     // kGather: offset. kMap: 1 for an activation with its slope. else 0
    // Offsets in floats into the blob, -1 = absent. weight: kLinear (n_out, n_in), kNorm (n_out), kGather
    // (n_in) indices, whole numbers
    int64_t weight, bias, step_table, class_table;
};

static_assert(sizeof(PlanHeader) == 80 && sizeof(StepRow) == 80 && sizeof(TileOp) == 64, "wire layout");

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
