// Launches the kernels of step.cuh.
#include "step.cuh"

namespace df::cuda {

namespace {

bool aligned(const StepArgs& a) {
    const void* tensors[] = {a.out,        a.x,          a.model_output, a.uncond_output, a.history[0],
                             a.history[1], a.history[2], a.prediction,   a.log_variance,  a.noise};
    uintptr_t bits = 0;
    for (const void* tensor : tensors) bits |= reinterpret_cast<uintptr_t>(tensor);
    return bits % 16 == 0;
}

}  // namespace

void run_step(const StepArgs& given, float* factor, float* threshold, const Replay& replay,
              const Target& target) {
    if (given.n == 0) return;
    const bool rescales = given.row.rescale != 0.0f && given.uncond_output,
               thresholds = given.row.quantile != 0.0f;
    if ((rescales && !factor) || (thresholds && !threshold))
        throw std::invalid_argument("factor, threshold: the row needs them");
    const DeviceGuard guard(target.device);
    StepArgs a = given;
    a.factor = rescales ? factor : nullptr;
    a.threshold = thresholds ? threshold : nullptr;
    if (a.factor || a.threshold) run_statistics(a, factor, threshold, target.stream);
    const bool per_sample = a.guidance_scales || a.factor || a.threshold;
    const bool packs = aligned(a) && (a.dim % 4 == 0 || (a.dim <= 2 && !per_sample));
    const bool full = (a.terms & (kTermC1 | kTermC2 | kTermC3)) || (a.row.flags & kPush) || a.prediction ||
                      a.log_variance || a.noise || a.factor || a.threshold || replay.seed || replay.step;
    with_dtype(a.dtype, [&](auto tag) {
        constexpr Dtype D = tag.value;
        const StepParams p{a, RoundKeys(a.seed), Draw(a.start, a.dim, a.step, kPurposeStep, 0), replay,
                           Cut(a.n, a.dim, Format<D>::kPack, packs)};
        launch(full ? step_kernel<D, true> : step_kernel<D, false>, p.cut.grid(), dim3(kThreads), 0,
               target.stream, p);
    });
}

void load_step() {
    with_every_dtype([](auto tag) {
        load(step_kernel<tag.value, false>);
        load(step_kernel<tag.value, true>);
    });
}

}  // namespace df::cuda
