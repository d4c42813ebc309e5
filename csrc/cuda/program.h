// A plan prepared for a device: the path that will run it, and one image with all that the kernels read, which
// the caller copies to the device. No CUDA calls.
#pragma once
#include <string>
#include <vector>

#include "../slots.h"
#include "chain_args.h"

namespace df::cuda {

struct DeviceLimits {
    int64_t shared_bytes;  // of one block, with opt-in
    int capability;        // 10 major + minor
    int multiprocessors;
};

enum class Precision { kFloat32, kBfloat16, kFloat16 };
Precision precision_named(const std::string& name);  // throws std::invalid_argument

// How the general kernel is launched.
struct GeneralShape {
    int vectors;          // V of Tile: 32 V samples a block
    bool in_shared;       // the workspace; else in global scratch
    int64_t block_bytes;  // of a block's workspace
};

class Program {
  public:
    // Throws std::invalid_argument that names what the device does not have.
    Program(const Plan& plan, Precision precision, const DeviceLimits& limits);

    const char* path() const { return "general"; }
    const std::string& reason() const { return reason_; }
    const std::vector<uint32_t>& image() const { return image_; }
    const ProgramView& view() const { return view_; }
    const GeneralShape& shape() const { return shape_; }
    // Blocks of a call for n samples, at most max_blocks where that is not 0.
    int64_t blocks(int64_t n, int64_t max_blocks) const;
    int64_t scratch_bytes(int64_t n) const;

  private:
    template <class T>
    int64_t append(const std::vector<T>& values);
    int64_t append_floats(const Plan& plan, int64_t offset, int64_t count);
    int64_t append_weight(const Plan& plan, const TileOp& op);
    ImageOp pack(const Plan& plan, const TileOp& op);
    void lay_out(const Plan& plan, const Slots& slots);
    void choose_shape();

    const DeviceLimits limits_;
    std::vector<uint32_t> image_;
    std::vector<int> value_at_[2];  // feature of the workspace where each value begins, of each branch
    ProgramView view_{};
    GeneralShape shape_{};
    std::string reason_;
};

}  // namespace df::cuda
