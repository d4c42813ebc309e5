// A plan prepared for a device: the path that will run it, and one image with all that the kernels read,
// which the caller copies to the device. No CUDA calls.
#pragma once
#include "../slots.h"
#include "mma_pack.h"
#include "wgmma_pack.h"
#include "wide_pack.h"

namespace df::cuda {

Precision precision_named(const std::string& name);  // throws std::invalid_argument

enum class Path {
    kGeneral,  // any plan, in float32
    kMma,      // on tensor cores, weights in shared memory
    kWgmma,    // the same by the products of a warpgroup
    kWide,     // on tensor cores, weights streamed
};

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

    Path path() const { return path_; }
    const std::string& reason() const { return reason_; }
    const std::vector<uint32_t>& image() const { return image_.words(); }
    const ProgramView& view() const { return view_; }
    const MmaShape& mma_shape() const { return mma_shape_; }
    const WgmmaShape& wgmma_shape() const { return wgmma_shape_; }
    const MmaView& mma_view() const { return mma_view_; }
    // Of a block of the wgmma kernel: as few as let all multiprocessors work alike.
    int warpgroups(int64_t n) const;
    const WideShape& wide_shape() const { return wide_shape_; }
    const WideView& wide_view() const { return wide_view_; }
    // Tiles of 16 samples of a block of the wide kernel: as few as let all multiprocessors work alike.
    int wide_tiles(int64_t n) const;
    const GeneralShape& general_shape() const { return general_shape_; }
    // Blocks of a call for n samples, at most max_blocks where that is not 0.
    int64_t blocks(int64_t n, int64_t max_blocks) const;
    int64_t scratch_bytes(int64_t n) const;

  private:
    // Returns what stands in the way of tensor cores.
    std::string prepare_tensor_cores(const Plan& plan, Precision precision);
    void prepare_general(const Plan& plan);
    int64_t append_weight(const Plan& plan, const TileOp& op);
    ImageOp pack(const Plan& plan, const TileOp& op);
    void lay_out(const Plan& plan, const Slots& slots);
    void choose_shape();

    const DeviceLimits limits_;
    Image image_;
    std::vector<int> value_at_[2];  // feature of the workspace where each value begins, of each branch
    ProgramView view_{};
    Path path_ = Path::kGeneral;
    MmaShape mma_shape_{};
    WgmmaShape wgmma_shape_{};
    MmaView mma_view_{};
    WideShape wide_shape_{};
    WideView wide_view_{};
    GeneralShape general_shape_{};
    std::string reason_;
};

}  // namespace df::cuda
