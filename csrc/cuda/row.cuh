// One row's update of one element of the state, as plan.h states it: the same terms in the same order, and so
// the same bits, as the CPU's.
#pragma once
#include "../cpu/functions.h"

namespace df::cuda {

// What an element carries from row to row.
struct Element {
    float x, h[3];
};

// m = p_x x + p_F F, before the clamp
DF_INLINE float prediction(const StepRow& r, uint32_t terms, float x, float F) {
    float m = 0.0f;
    if (terms & kTermPx) m = r.p_x * x;
    if (terms & kTermPF) m = ScalarLanes::fma(r.p_F, F, m);
    return m;
}

// F is 0 where the row has no evaluation; m is used where the row has a dynamic threshold; z where s is not
// 0.
DF_INLINE void update(const StepRow& r, uint32_t terms, Element& element, float F, float m, float z) {
    const auto fma = [](float a, float b, float c) { return ScalarLanes::fma(a, b, c); };
    const float x = element.x;
    float next = terms & kTermA ? r.a * x : 0.0f;
    if (terms & (kTermB | kTermPush)) {
        if (r.quantile == 0.0f) {
            m = prediction(r, terms, x, F);
            if (terms & kTermClip) m = max_keep_nan(vf(-r.clip), min_keep_nan(vf(r.clip), vf(m))).v;
        }
        if (terms & kTermB) next = fma(r.b, m, next);
    }
    if (terms & kTermE) next = fma(r.e, F, next);
    if (terms & kTermC1) next = fma(r.c1, element.h[0], next);
    if (terms & kTermC2) next = fma(r.c2, element.h[1], next);
    if (terms & kTermC3) next = fma(r.c3, element.h[2], next);
    if (r.s != 0.0f) next = fma(r.s, z, next);
    element.x = next;
    if (r.flags & kPush) {
        element.h[2] = element.h[1];
        element.h[1] = element.h[0];
        element.h[0] = m;
    }
}

}  // namespace df::cuda
