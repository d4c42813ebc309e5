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
    Program(const Plan& plan, const Kernels& kernels);

    ProgramView view() const;
    const Kernels& kernels() const { return kernels_; }
    const TileSize& tile() const { return wide_ ? kernels_.wide : kernels_.usual; }
    // Multiply-adds of one sample and one row, both branches, for deciding how many threads a call is worth.
    int64_t work_per_step() const { return work_per_step_; }

  private:
    PackedOp pack(const Plan& plan, const TileOp& op);
    const float* pack_blocks(const float* weight, int n_out, int n_in);
    const float* pack_rows(const float* weight, int n_out, int n_in, int padded);
    const float* pack_table(const Plan& plan, int64_t offset, int64_t count, int width, int padded,
                            bool added_to_zero);
    float* allocate(int64_t floats);

    const Kernels& kernels_;
    const bool wide_;
    std::vector<StepRow> rows_;
    std::vector<PackedOp> ops_;
    Slots slots_;
    std::unique_ptr<bool[]> slot_differs_;
    const float* null_context_ = nullptr;
    std::vector<std::unique_ptr<float[]>> storage_;
    PlanHeader header_;
    int64_t work_per_step_ = 0;
};

}  // namespace df::cpu
