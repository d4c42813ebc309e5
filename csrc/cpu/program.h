// A plan prepared for one instruction set: weights packed for its register blocks, values assigned to shared
// buffers.
#pragma once
#include <memory>
#include <vector>

#include "../slots.h"
#include "kernels.h"

namespace df::cpu {

class Program {
  public:
    // In the first low_rows rows the products of wide layers are of bfloat16.
    Program(const Plan& plan, const Kernels& kernels, int low_rows);

    ProgramView view() const;
    const Kernels& kernels() const { return kernels_; }
    const TileSize& tile() const { return wide_ ? kernels_.wide : kernels_.usual; }
    // Multiply-adds of one sample and one row, both branches, for deciding how many threads a call is worth.
    int64_t work_per_step() const { return work_per_step_; }
    // Whether a layer is wide enough for products of bfloat16; false with low_rows = 0.
    bool has_pairs() const { return pairs_ > 0; }

  private:
    PackedOp pack(const Plan& plan, const TileOp& op);
    template <class T, class Weight>
    const T* pack_blocks(Weight weight, int n_out, int terms);
    template <class T, class Weight>
    const T* pack_rows(Weight weight, int n_out, int terms, int padded);
    const float* pack_table(const Plan& plan, int64_t offset, int64_t count, int width, int padded,
                            bool added_to_zero);
    float* allocate(int64_t floats);

    const Kernels& kernels_;
    const bool wide_;
    const int low_rows_;
    std::vector<StepRow> rows_;
    std::vector<PackedOp> ops_;
    Slots slots_;
    std::unique_ptr<bool[]> slot_differs_;
    const float* null_context_ = nullptr;
    std::vector<std::unique_ptr<float[]>> storage_;
    PlanHeader header_;
    int64_t work_per_step_ = 0;
    int pairs_ = 0;
};

}  // namespace df::cpu
