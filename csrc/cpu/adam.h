// Adam on vectors of weights, and the steps that a row of a table was not used in, taken later at once.
#pragma once
#include "functions.h"
#include "train.h"

namespace df::DF_ISA {

constexpr float kEpsilon = 1e-8f;

struct AdamState {
    vf weight, moment1, moment2;
};

// One step of torch.optim.Adam -> how far the weight moves for each unit of the rate.
DF_INLINE vf adam(AdamState& s, vf gradient, const cpu::AdamStep& step, const cpu::AdamOptions& o) {
    const vf g = fma(splat(o.l2), s.weight, gradient);
    s.moment1 = fma(splat(float(1.0 - cpu::kBeta1)), g - s.moment1, s.moment1);
    s.moment2 = fma(splat(float(1.0 - cpu::kBeta2)) * g, g, splat(float(cpu::kBeta2)) * s.moment2);
    // Once moment2 overflows, a weight would stand still for good and nobody would know: the loss is to tell.
    const vf overflow = s.moment2 - s.moment2;  // 0, or not a number
    const vf direction = s.moment1 / fma(sqrt(s.moment2), splat(step.root_scale), splat(kEpsilon)) + overflow;
    s.weight = fma(splat(-step.rate), direction, splat(step.shrink) * s.weight);
    return direction;
}

// Weights [at, at + count): count a multiple of W.
DF_INLINE void adam_range(const cpu::TrainView& v, int64_t at, int64_t count, const float* gradient,
                          float scale, const cpu::AdamStep& step) {
    for (int64_t i = at; i < at + count; i += W) {
        AdamState s{load(v.weights + i), load(v.moment1 + i), load(v.moment2 + i)};
        adam(s, splat(scale) * load(gradient + (i - at)), step, v.adam);
        store(v.weights + i, s.weight);
        store(v.moment1 + i, s.moment1);
        store(v.moment2 + i, s.moment2);
        if (v.adam.average) {
            const vf mean = load(v.average + i);
            store(v.average + i, fma(splat(step.average_weight), s.weight - mean, mean));
        }
    }
}

DF_INLINE bool any(vi mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask(__m512i(mask), __m512i(mask)) != 0;
#elif defined(__AVX2__)
    return !_mm256_testz_si256(__m256i(mask), __m256i(mask));
#else
    int32_t all = 0;
    for (int i = 0; i < W; ++i) all |= mask[i];
    return all != 0;
#endif
}

// Steps [from, to) without a gradient, on one vector.
//
// Such a weight still moves, ever less: by moment1 / sqrt(moment2), which falls by 0.9 / sqrt(0.999) a step.
// Once even the highest rate leaves it where it is, it stays there, and what is left of the steps is in
// closed form: the moments fade, the average approaches the weight. (In the first steps the correction of
// moment2 makes the move grow, by 1.5 in all; they are over when the first test is made.)
DF_INLINE void adam_unused(const cpu::TrainView& v, int64_t i, int64_t from, int64_t to) {
    constexpr int64_t kTestEvery = 16;
    const cpu::AdamOptions& o = v.adam;
    AdamState s{load(v.weights + i), load(v.moment1 + i), load(v.moment2 + i)};
    vf mean = o.average ? load(v.average + i) : splat(0.0f);
    int64_t k = from;
    while (k < to) {
        const int64_t until = to - k > kTestEvery ? k + kTestEvery : to;
        vf direction = splat(0.0f);
        for (; k < until; ++k) {
            direction = adam(s, splat(0.0f), v.steps[k], o);
            mean = fma(splat(v.steps[k].average_weight), s.weight - mean, mean);
        }
        if (o.fades && !any(fma(splat(-o.peak_rate), direction, s.weight) != s.weight)) break;
    }
    if (k < to) {
        const float left = float(to - k);
        s.moment1 *= exp(splat(left * -0.105360516f));   // ln 0.9
        s.moment2 *= exp(splat(left * -0.0010005003f));  // ln 0.999
        if (o.average) {
            const float fading = float(v.steps[to].log_decays - v.steps[k].log_decays);
            mean = fma(exp(splat(fading)), mean - s.weight, s.weight);
        }
    }
    store(v.weights + i, s.weight);
    store(v.moment1 + i, s.moment1);
    store(v.moment2 + i, s.moment2);
    if (o.average) store(v.average + i, mean);
}

// Row `row` of a trained table, up to but not including step `step`.
DF_INLINE void settle_row(const cpu::TrainView& v, const cpu::TrainTable& table, int64_t row, int64_t step) {
    const int64_t from = table.settled[row], at = table.offset + row * table.stride;
    if (from >= step) return;
    for (int j = 0; j < table.stride; j += W) adam_unused(v, at + j, from, step);
    table.settled[row] = step;
}

}  // namespace df::DF_ISA
