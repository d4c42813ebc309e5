// A plan prepared for a device: the path that will run it, and one image with all that the kernels read,
// which the caller copies to the device. No CUDA calls.
#pragma once
#include "../slots.h"
#include "mma_pack.h"

namespace df::cuda {

Precision precision_named(const std::string& name);  // throws std::invalid_argument

// How the general kernel is launched.
struct GeneralShape {
    int vectors;          // V of Tile: 32 V samples a block
    bool in_shared;       // the workspace; else in global scratch
    int64_t block_bytes;  // of a block's workspace
};

class Program {
  public:
    // tensor_cores: whether they may be used; without, the samples have the CPU's bits. Throws
    // std::invalid_argument that names what the device does not have.
    Program(const Plan& plan, Precision precision, const DeviceLimits& limits, bool tensor_cores);

    const char* path() const { return on_tensor_cores_ ? "mma" : "general"; }
    const std::string& reason() const { return reason_; }
    const std::vector<uint32_t>& image() const { return image_.words(); }
    const ProgramView& view() const { return view_; }
    bool on_tensor_cores() const { return on_tensor_cores_; }  // else the general kernel runs it
    const MmaShape& mma_shape() const { return mma_shape_; }
    const MmaView& mma_view() const { return mma_view_; }
    const GeneralShape& general_shape() const { return general_shape_; }
    // Blocks of a call for n samples, at most max_blocks where that is not 0.
    int64_t blocks(int64_t n, int64_t max_blocks) const;
    int64_t scratch_bytes(int64_t n) const;

  private:
    void prepare_general(const Plan& plan);
    int64_t append_weight(const Plan& plan, const TileOp& op);
    ImageOp pack(const Plan& plan, const TileOp& op);
    void lay_out(const Plan& plan, const Slots& slots);
    void choose_shape();

    const DeviceLimits limits_;
    Image image_;
    std::vector<int> value_at_[2];  // feature of the workspace where each value begins, of each branch
    ProgramView view_{};
    bool on_tensor_cores_ = false;
    MmaShape mma_shape_{};
    MmaView mma_view_{};
    GeneralShape general_shape_{};
    std::string reason_;
};

}  // namespace df::cuda
