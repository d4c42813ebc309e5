// What the kernels on tensor cores ask of a plan, and the parts of its image that they read alike.
#pragma once
#include <string>

#include "image.h"

namespace df::cuda {

struct DeviceLimits {
    int64_t shared_bytes;  // of one block, with opt-in
    int capability;        // 10 major + minor
    int multiprocessors;
};

enum class Precision { kFloat32, kBfloat16, kFloat16 };

// What keeps the plan from tensor cores in this precision, whatever its size; empty: nothing.
std::string chain_obstacle(const Plan& plan, Precision precision);

bool has_history(const Plan& plan);

int widest_layer(const Plan& plan);  // by outputs, those of the last being as many as x has

int parts_of(Precision precision);        // into which a value is split
int words_per_lane(Precision precision);  // of a fragment of weights

// A weight in the 16 bits of a part; 0 beyond the op's outputs and inputs
uint16_t weight_bits(const Plan& plan, const TileOp& op, Precision precision, int part, int output,
                     int input);

// What a lane of a warp holds of an op's inputs 16 k and outputs 8 n on: b0 and b1 (ptx.h), then of a split
// weight the low parts. repeated: the second eight inputs are what rounding left of the first
// (SixteenBits::pack_rest).
void append_lane(const Plan& plan, const TileOp& op, Precision precision, bool repeated, int n, int k,
                 int lane, std::vector<uint32_t>& out);

// `count` rows of a table, each filled up to `width` with zeros; zeros for an absent one
void append_rows(const Plan& plan, const TileOp& op, int64_t offset, int64_t count, int width,
                 std::vector<float>& out);

// The values that an op's sums start from, the bias and where there is one the row of its step table: one
// row, or n_tables.
std::vector<float> start_rows(const Plan& plan, const TileOp& op, int width);

int64_t append_class_rows(const Plan& plan, const TileOp& op, int width, Image& image);

}  // namespace df::cuda
