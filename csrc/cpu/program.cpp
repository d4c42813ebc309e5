#include "program.h"

#include <algorithm>

namespace df::cpu {
namespace {

// Widths are padded to 16, whole vectors on every instruction set and whole quads of the noise.
int padded(uint32_t width) { return int((width + 15) / 16 * 16); }

}  // namespace

Program::Program(const Plan& plan, const Kernels& kernels)
    : kernels_(kernels), rows_(plan.rows), header_(plan.header) {
    assign_slots(plan);
    for (const TileOp& op : plan.ops) {
        PackedLinear l{};
        l.n_in = int(op.n_in);
        l.n_out = int(op.n_out);
        l.n_out_padded = padded(op.n_out);
        l.activation = Activation(op.activation);
        l.act_param = op.act_param;
        l.blocks = pack_blocks(plan.blob.data() + op.weight, l.n_out, l.n_in);
        l.rows = pack_rows(plan.blob.data() + op.weight, l.n_out, l.n_in, l.n_out_padded);
        l.bias = pack_table(plan, op.bias, 1, l.n_out, l.n_out_padded, false);
        l.step_table = pack_table(plan, op.step_table, header_.n_tables, l.n_out, l.n_out_padded, !l.bias);
        const bool alone = !l.bias && !l.step_table;
        l.class_table = pack_table(plan, op.class_table, header_.n_classes, l.n_out, l.n_out_padded, alone);
        l.src = slot_of_value_[op.src];
        l.dst = slot_of_value_[op.dst];
        linears_.push_back(l);
        work_per_step_ += int64_t(l.n_in) * l.n_out;
    }
    work_per_step_ *= header_.branches;
}

float* Program::allocate(int64_t floats) {
    storage_.push_back(std::make_unique<float[]>(size_t(floats) + 16));
    auto address = reinterpret_cast<uintptr_t>(storage_.back().get());
    return reinterpret_cast<float*>((address + 63) / 64 * 64);
}

// Blocks of kernels_.block outputs, the last one narrower: [block][k][outputs of the block]
const float* Program::pack_blocks(const float* weight, int n_out, int n_in) {
    float* packed = allocate(int64_t(n_out) * n_in);
    float* at = packed;
    for (int j = 0; j < n_out; j += kernels_.block)
        for (int k = 0; k < n_in; ++k)
            for (int r = j; r < std::min(j + kernels_.block, n_out); ++r)
                *at++ = weight[int64_t(r) * n_in + k];
    return packed;
}

const float* Program::pack_rows(const float* weight, int n_out, int n_in, int padded) {
    float* packed = allocate(int64_t(padded) * n_in);
    for (int k = 0; k < n_in; ++k)
        for (int j = 0; j < n_out; ++j) packed[int64_t(k) * padded + j] = weight[int64_t(j) * n_in + k];
    return packed;
}

// The first table of a layer without bias is added to 0, which only turns -0 to +0: done here, once.
const float* Program::pack_table(const Plan& plan, int64_t offset, int64_t count, int width, int padded,
                                 bool added_to_zero) {
    if (offset < 0) return nullptr;
    float* packed = allocate(count * padded);
    for (int64_t i = 0; i < count; ++i)
        for (int j = 0; j < width; ++j) {
            const float value = plan.blob[size_t(offset + i * width + j)];
            packed[i * padded + j] = added_to_zero && value == 0.0f ? 0.0f : value;
        }
    return packed;
}

// Linear scan: a value takes the first slot that is free when it is written; slot 0 is the net's input, the
// output value's slot is never handed on. An op never writes the slot it reads.
void Program::assign_slots(const Plan& plan) {
    const size_t n = plan.widths.size();
    std::vector<size_t> last_read(n, 0);
    for (size_t i = 0; i < plan.ops.size(); ++i) last_read[plan.ops[i].src] = i;
    last_read[header_.out_value] = plan.ops.size();
    slot_of_value_.assign(n, 0);
    slot_width_.assign(1, padded(header_.dim));
    std::vector<size_t> busy_until(1, plan.ops.size());
    for (size_t i = 0; i < plan.ops.size(); ++i) {
        const uint32_t value = plan.ops[i].dst;
        size_t slot = 1;
        while (slot < busy_until.size() && busy_until[slot] >= i) ++slot;
        if (slot == busy_until.size()) {
            busy_until.push_back(0);
            slot_width_.push_back(0);
        }
        busy_until[slot] = std::max(last_read[value], i);
        slot_width_[slot] = std::max(slot_width_[slot], padded(plan.widths[value]));
        slot_of_value_[value] = int(slot);
    }
}

ProgramView Program::view() const {
    ProgramView v{};
    v.rows = rows_.data();
    v.linears = linears_.data();
    v.slot_width = slot_width_.data();
    v.n_rows = int(rows_.size());
    v.n_linears = int(linears_.size());
    v.n_slots = int(slot_width_.size());
    v.out_slot = slot_of_value_[header_.out_value];
    v.dim = int(header_.dim);
    v.dim_padded = padded(header_.dim);
    v.n_classes = int(header_.n_classes);
    v.branches = int(header_.branches);
    v.terms = header_.terms;
    return v;
}

}  // namespace df::cpu
