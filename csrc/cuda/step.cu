// Launches the kernels of step.cuh and statistics.cuh.
#include "step.cuh"

#include "statistics.cuh"

namespace df::cuda {

namespace {

// work(tag), tag the dtype as a constant.
template <Dtype D>
using Tag = std::integral_constant<Dtype, D>;

template <class Work>
void with_dtype(Dtype dtype, Work work) {
    switch (dtype) {
        case Dtype::kFloat32:
            return work(Tag<Dtype::kFloat32>{});
        case Dtype::kBfloat16:
            return work(Tag<Dtype::kBfloat16>{});
        case Dtype::kFloat16:
            return work(Tag<Dtype::kFloat16>{});
    }
}

bool aligned(const StepArgs& a) {
    const void* tensors[] = {a.out,         a.x,          a.model_output, a.uncond_output, a.history[0],
                             a.history[1],  a.history[2], a.prediction,   a.log_variance,  a.noise};
    uintptr_t bits = 0;
    for (const void* tensor : tensors) bits |= reinterpret_cast<uintptr_t>(tensor);
    return bits % 16 == 0;
}

template <Dtype D, int Threads>
void launch_statistics(const StatisticsParams& p, void* stream) {
    constexpr int kTeams = kThreads / Threads;
    const int64_t blocks = (p.args.n + kTeams - 1) / kTeams;
    if (blocks > 0x7fffffff) throw std::invalid_argument("n: too many samples for one launch");
    launch(statistics_kernel<D, Threads>, dim3(uint32_t(blocks)), dim3(kThreads), kTeams * Team<Threads>::kBytes,
           stream, p);
}

StatisticsParams statistics_params(const StepArgs& a, float* factor, float* threshold) {
    const double position = double(a.row.quantile) * double(a.dim - 1);
    const auto rank = uint32_t(position);
    return {a, factor, threshold, rank, float(position - rank)};
}

}  // namespace

void run_step(const StepArgs& given, float* factor, float* threshold, const Replay& replay, const Target& target) {
    if (given.n == 0) return;
    const DeviceGuard guard(target.device);
    StepArgs a = given;
    const bool rescales = a.row.rescale != 0.0f && a.uncond_output, thresholds = a.row.quantile != 0.0f;
    if ((rescales && !factor) || (thresholds && !threshold))
        throw std::invalid_argument("factor, threshold: the row needs them");
    if (rescales || thresholds) {
        const StatisticsParams p =
            statistics_params(a, rescales ? factor : nullptr, thresholds ? threshold : nullptr);
        with_dtype(a.dtype, [&](auto tag) {
            if (a.dim <= kSmallSample)
                launch_statistics<tag.value, 32>(p, target.stream);
            else
                launch_statistics<tag.value, kThreads>(p, target.stream);
        });
        a.factor = p.factor;
        a.threshold = p.threshold;
    }
    const bool per_sample = a.guidance_scales || a.factor || a.threshold;
    const bool packs = aligned(a) && (a.dim % 4 == 0 || (a.dim <= 2 && !per_sample));
    const bool full = (a.terms & (kTermC1 | kTermC2 | kTermC3)) || (a.row.flags & kPush) || a.prediction ||
                      a.log_variance || a.noise || a.factor || a.threshold || replay.seed || replay.step;
    with_dtype(a.dtype, [&](auto tag) {
        constexpr Dtype D = tag.value;
        const StepParams p{a, RoundKeys(a.seed), Draw(a.start, a.dim, a.step, kPurposeStep, 0), replay,
                           Cut(a.n, a.dim, Element<D>::kPack, packs)};
        launch(full ? step_kernel<D, true> : step_kernel<D, false>, p.cut.grid(), dim3(kThreads), 0,
               target.stream, p);
    });
}

void load_step() {
    for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBfloat16, Dtype::kFloat16})
        with_dtype(dtype, [](auto tag) {
            constexpr Dtype D = tag.value;
            load(step_kernel<D, false>);
            load(step_kernel<D, true>);
            load(statistics_kernel<D, 32>);
            load(statistics_kernel<D, kThreads>);
        });
}

}  // namespace df::cuda
