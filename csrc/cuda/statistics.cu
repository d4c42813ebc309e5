// Launches the kernels of statistics.cuh.
#include "api.h"
#include "statistics.cuh"

namespace df::cuda {

namespace {

template <Dtype D, int Threads>
void launch_team(const StatisticsParams& p, void* stream) {
    constexpr int kTeams = kThreads / Threads;
    const int64_t blocks = (p.args.n + kTeams - 1) / kTeams;
    if (blocks > 0x7fffffff) throw std::invalid_argument("n: too many samples for one launch");
    launch(statistics_kernel<D, Threads>, dim3(uint32_t(blocks)), dim3(kThreads),
           kTeams * Team<Threads>::kBytes, stream, p);
}

}  // namespace

void run_statistics(const StepArgs& a, float* factor, float* threshold, void* stream) {
    const double position = double(a.row.quantile) * double(a.dim - 1);
    const auto rank = uint32_t(position);
    const StatisticsParams p{a, a.factor ? factor : nullptr, a.threshold ? threshold : nullptr, rank,
                             float(position - rank)};
    with_dtype(a.dtype, [&](auto tag) {
        if (a.dim <= kSmallSample)
            launch_team<tag.value, 32>(p, stream);
        else
            launch_team<tag.value, kThreads>(p, stream);
    });
}

void load_statistics() {
    with_every_dtype([](auto tag) {
        load(statistics_kernel<tag.value, 32>);
        load(statistics_kernel<tag.value, kThreads>);
    });
}

}  // namespace df::cuda
