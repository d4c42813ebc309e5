#include "slots.h"

#include <algorithm>

namespace df {
namespace {

// Of a guided plan: values that come from the class, from a context that has a null, or from such values.
std::vector<bool> values_that_differ(const Plan& plan) {
    std::vector<bool> differs(plan.widths.size(), false);
    if (plan.header.branches == 1) return differs;
    if (plan.header.null_context >= 0) differs[1] = true;
    for (const TileOp& op : plan.ops)
        if (op.class_table >= 0 || differs[op.src] || (reads_extra(op) && differs[op.extra]))
            differs[op.dst] = true;
    return differs;
}

// The op that last uses each value; ops.size() for those that stay.
std::vector<size_t> last_uses(const Plan& plan) {
    std::vector<size_t> last(plan.widths.size(), 0);
    const size_t end = plan.ops.size();
    for (size_t i = 0; i < end; ++i) {
        const TileOp& op = plan.ops[i];
        last[op.src] = last[op.dst] = i;
        if (reads_extra(op)) last[op.extra] = i;
    }
    for (size_t i = 0; i < plan.header.n_prologue; ++i) last[plan.ops[i].dst] = end;
    last[plan.header.out_value] = end;
    return last;
}

}  // namespace

bool reads_extra(const TileOp& op) {
    return OpKind(op.kind) == OpKind::kBinary || (OpKind(op.kind) == OpKind::kLinear && op.extra);
}

Slots assign_slots(const Plan& plan, int padding) {
    const auto padded = [padding](uint32_t width) { return (int(width) + padding - 1) / padding * padding; };
    const size_t end = plan.ops.size();
    const std::vector<size_t> last_use = last_uses(plan);
    Slots s;
    s.value_differs = values_that_differ(plan);
    s.of_value.assign(plan.widths.size(), 0);
    s.width.assign(1, padded(plan.header.dim));
    s.differs.assign(1, false);
    std::vector<size_t> busy_until(1, end);
    const auto place = [&](uint32_t value, size_t now, size_t until) {
        if (s.of_value[value]) return;  // another part of it was written before
        size_t slot = 1;
        while (slot < busy_until.size() &&
               (busy_until[slot] >= now || s.differs[slot] != s.value_differs[value]))
            ++slot;
        if (slot == busy_until.size()) {
            busy_until.push_back(0);
            s.width.push_back(0);
            s.differs.push_back(s.value_differs[value]);
        }
        busy_until[slot] = until;
        s.width[slot] = std::max(s.width[slot], padded(plan.widths[value]));
        s.of_value[value] = int(slot);
    };
    if (plan.header.n_context) place(1, 0, end);
    for (size_t i = 0; i < end; ++i) place(plan.ops[i].dst, i, last_use[plan.ops[i].dst]);
    return s;
}

}  // namespace df
