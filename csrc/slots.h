// Where a plan's values live while it runs: slots, buffers shared by values whose lifetimes do not meet.
#pragma once
#include "plan.h"

namespace df {

struct Slots {
    std::vector<int> of_value;        // 0 is the net's input
    std::vector<int> width;           // of each slot: its widest value, padded
    std::vector<bool> differs;        // of each slot: whether the two branches need a buffer each
    std::vector<bool> value_differs;  // between the branches of a guided plan
};

// Whether `extra` names a value.
bool reads_extra(const TileOp& op);

// Linear scan: a value takes the first slot that is free when it is first written; slot 0 is the net's input,
// the slots of the output value, of the context and of what the prologue writes are never handed on. An op
// never writes a slot it reads. A slot serves values of one kind: the same in both branches, or different.
Slots assign_slots(const Plan& plan, int padding);

}  // namespace df
