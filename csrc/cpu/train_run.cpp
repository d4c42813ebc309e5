// The steps of a training call: each phase is shared among threads that meet after it.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <system_error>
#include <thread>

#include "../bind_checks.h"
#include "floating_point.h"
#include "trainer.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace df::cpu {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kRowsAtOnce = 96;        // between two layers they stay in the second cache
constexpr int kUnitRows = 128;         // inputs of one unit of weights
constexpr double kWorthAThread = 1e6;  // multiply-adds of a step: meeting costs about a microsecond

void pause(int turns) {
    if (turns > 4000) return std::this_thread::yield();
#if defined(__SSE2__)
    _mm_pause();
#endif
}

// Threads that work on a call together. Meeting spins: a step is as short as some ten microseconds.
class Team {
  public:
    int size = 1;  // set before the others start to work

    void meet() {
        if (size == 1) return;
        const int round = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        for (int turns = 0; round_.load(std::memory_order_acquire) == round; ++turns) pause(turns);
    }

    // work(i) for i = 0 .. size - 1, 0 on the calling thread; must not throw
    template <class Work>
    void run(int threads, Work work) {
        std::atomic<bool> started{false};
        std::vector<std::thread> others;
        others.reserve(size_t(threads));
        const auto guarded = [&](int i) {
            const FloatingPointState state(true);
            while (!started.load(std::memory_order_acquire)) std::this_thread::yield();
            work(i);
        };
        try {
            for (int i = 1; i < threads; ++i) others.emplace_back(guarded, i);
        } catch (const std::system_error&) {  // no more threads to be had: those there are do
        }
        size = int(others.size()) + 1;
        started.store(true, std::memory_order_release);
        guarded(0);
        for (std::thread& t : others) t.join();
    }

  private:
    std::atomic<int> arrived_{0}, round_{0};
};

// Which rows of a condition's table each batch uses.
struct Uses {
    std::vector<int32_t> table_rows, slot, begin, members;
    std::vector<int64_t> first;  // of each batch, in table_rows; its begin is first + number of the batch

    Uses(const int64_t* index, const TrainCall& call, int n_rows) {
        require(index != nullptr, "indices: a null pointer");
        std::vector<int32_t> slot_of(size_t(n_rows), -1), next;
        slot.resize(size_t(call.rows));
        members.resize(size_t(call.rows));
        for (int64_t from = 0; from < call.rows; from += call.batch) {
            const int64_t rows = std::min(call.batch, call.rows - from), base = int64_t(table_rows.size());
            first.push_back(base);
            for (int64_t n = from; n < from + rows; ++n) {
                require(index[n] >= 0 && index[n] < n_rows, "indices: out of range");
                int32_t& at = slot_of[size_t(index[n])];
                if (at < 0) {
                    at = int32_t(int64_t(table_rows.size()) - base);
                    table_rows.push_back(int32_t(index[n]));
                }
                slot[size_t(n)] = at;
            }
            group(from, rows, base, next);
            for (size_t u = size_t(base); u < table_rows.size(); ++u) slot_of[size_t(table_rows[u])] = -1;
        }
        first.push_back(int64_t(table_rows.size()));
    }

    // Distinct rows in the batch that has most of them.
    int64_t most() const {
        int64_t count = 0;
        for (size_t s = 1; s < first.size(); ++s) count = std::max(count, first[s] - first[s - 1]);
        return count;
    }

    TrainUse of(const TrainCall& call, int64_t step) const {
        const int64_t base = first[size_t(step)], from = step * call.batch;
        return {int(first[size_t(step) + 1] - base), table_rows.data() + base, slot.data() + from,
                begin.data() + base + step, members.data() + from};
    }

  private:
    // The rows of a batch by slot: counted, then placed.
    void group(int64_t from, int64_t rows, int64_t base, std::vector<int32_t>& next) {
        const size_t count = table_rows.size() - size_t(base), at = begin.size();
        begin.resize(at + count + 1, 0);
        for (int64_t n = from; n < from + rows; ++n) ++begin[at + 1 + size_t(slot[size_t(n)])];
        for (size_t u = 0; u < count; ++u) begin[at + u + 1] += begin[at + u];
        next.assign(begin.begin() + int64_t(at), begin.end() - 1);
        for (int64_t n = from; n < from + rows; ++n)
            members[size_t(from + next[size_t(slot[size_t(n)])]++)] = int32_t(n - from);
    }
};

// What the threads of one call share.
struct Call {
    const TrainCall& call;
    const TrainKernels& kernels;
    const TrainView view;
    const std::vector<Uses> uses;
    const int64_t before;  // steps in view.steps that are not this call's
    const double max_norm;
    const Poll poll;
    std::vector<TrainUnit> units;
    std::vector<double> unit_end;                       // cumulative work
    std::vector<double> unit_square;                    // of the gradient, for its norm
    std::vector<std::unique_ptr<double[]>> row_square;  // of each condition
    Team team;
    bool stopped = false;
    int64_t done = 0;
    Clock::time_point polled = Clock::now();

    Call(const TrainCall& c, const TrainKernels& k, const TrainView& v, std::vector<Uses> u, int64_t steps,
         double norm, Poll p)
        : call(c), kernels(k), view(v), uses(std::move(u)), before(steps), max_norm(norm), poll(p) {
        double work = 0.0;
        for (int i = 0; i <= view.n_conditions; ++i)
            for (int l = 0; l < view.chains[i].n_layers; ++l) {
                const TrainLayer& layer = view.chains[i].layers[l];
                for (int p = 0; p * kernels.panel < layer.n_out_padded; ++p)
                    for (int k = 0; k < layer.n_in; k += kUnitRows) {
                        units.push_back({i, l, p, k, std::min(layer.n_in, k + kUnitRows)});
                        const int width = std::min(kernels.panel, layer.n_out_padded - p * kernels.panel);
                        work += double(units.back().k_end - k + 1) * width;
                        unit_end.push_back(work);
                    }
            }
        unit_square.resize(units.size());
        for (const Uses& use : uses) row_square.emplace_back(new double[size_t(use.most())]);
    }

    const TrainChain& trunk() const { return view.chains[view.n_conditions]; }

    // rows [0, count) -> this thread's part
    template <class Use>
    void share(int count, int i, Use use) const {
        const int first = int(int64_t(count) * i / team.size),
                  last = int(int64_t(count) * (i + 1) / team.size);
        if (first < last) use(first, last);
    }

    template <class Use>
    void share_units(int i, Use use) const {
        const double all = unit_end.back(), from = all * i / team.size, to = all * (i + 1) / team.size;
        for (size_t u = 0; u < units.size(); ++u) {
            const double middle = 0.5 * (unit_end[u] + (u ? unit_end[u - 1] : 0.0));
            if (middle >= from && middle < to) use(u);
        }
    }

    void work(int i) {
        std::vector<TrainUse> used(uses.size());
        for (int64_t s = 0; s < call.steps() && !stopped; ++s) {
            const int64_t from = s * call.batch;
            for (size_t c = 0; c < uses.size(); ++c) used[c] = uses[c].of(call, s);
            const TrainBatch batch{before + s, int(std::min(call.batch, call.rows - from)),
                                   call.x + from * trunk().layers[0].n_in,
                                   call.target + from * trunk().layers[trunk().n_layers - 1].n_out,
                                   used.data()};
            derivatives(batch, i);
            const float scale = gradients(batch, i);
            share_units(i, [&](size_t u) { kernels.update(view, batch, units[u], scale); });
            for (int c = 0; c < view.n_conditions; ++c)
                if (view.chains[c].table.trained)
                    share(used[size_t(c)].count, i, [&](int first, int last) {
                        kernels.update_rows(view, batch, c, first, last, scale);
                    });
            if (i == 0) finish(batch);
            team.meet();
        }
    }

    // By the sums of every layer.
    void derivatives(const TrainBatch& batch, int i) {
        for (int c = 0; c < view.n_conditions; ++c)
            share(batch.uses[c].count, i,
                  [&](int first, int last) { kernels.condition_forward(view, batch, c, first, last); });
        if (view.n_conditions) team.meet();
        share(batch.rows, i, [&](int first, int last) {
            const int parts = (last - first + kRowsAtOnce - 1) / kRowsAtOnce, count = last - first;
            for (int p = 0; p < parts; ++p)
                kernels.trunk(view, batch, first + count * p / parts, first + count * (p + 1) / parts);
        });
        team.meet();
        for (int c = 0; c < view.n_conditions; ++c)
            share(batch.uses[c].count, i,
                  [&](int first, int last) { kernels.condition_backward(view, batch, c, first, last); });
        if (view.n_conditions) team.meet();
    }

    // By the weights -> what to multiply them with, so that their norm is at most max_norm.
    float gradients(const TrainBatch& batch, int i) {
        share_units(i, [&](size_t u) { kernels.gradient(view, batch, units[u]); });
        if (max_norm == 0.0) return 1.0f;
        share_units(i, [&](size_t u) { unit_square[u] = kernels.gradient_square(view, units[u]); });
        for (int c = 0; c < view.n_conditions; ++c)
            if (view.chains[c].table.trained)
                share(batch.uses[c].count, i, [&](int first, int last) {
                    for (int u = first; u < last; ++u)
                        row_square[size_t(c)][u] = kernels.row_square(view, c, u);
                });
        team.meet();
        double square = 0.0;  // by every thread in the same order
        for (const double s : unit_square) square += s;
        for (int c = 0; c < view.n_conditions; ++c)
            if (view.chains[c].table.trained)
                for (int u = 0; u < batch.uses[c].count; ++u) square += row_square[size_t(c)][u];
        const double scale = max_norm / (std::sqrt(square) + 1e-6);  // torch.nn.utils.clip_grad_norm_
        return scale < 1.0 ? float(scale) : square >= 0.0 ? 1.0f : NAN;
    }

    void finish(const TrainBatch& batch) {
        double sum = 0.0;
        for (int n = 0; n < batch.rows; ++n) sum += double(view.row_loss[n]);
        const int n_out = trunk().layers[trunk().n_layers - 1].n_out;
        call.losses[done++] = float(sum / (double(batch.rows) * n_out));
        if (done % 8) return;
        const auto now = Clock::now();
        if (now - polled < std::chrono::milliseconds(50)) return;
        polled = now;
        const FloatingPointState as_python_has_it;
        stopped = !poll.function(poll.context, done);
    }
};

}  // namespace

int64_t Trainer::run(const TrainCall& call, int threads, Poll poll) {
    require(call.batch >= 1 && call.batch <= 1 << 24, "batch_size: out of range");
    require(call.indices.size() + 1 == chains_.size(), "indices: one for each condition");
    if (call.rows == 0) return 0;
    const int64_t rows = std::min(call.batch, call.rows), before = std::max<int64_t>(0, steps_.size() - 1);
    std::vector<Uses> uses;
    for (size_t i = 0; i < call.indices.size(); ++i)
        uses.emplace_back(call.indices[i], call, chains_[i].table.rows);
    make_buffers(rows);
    plan_steps(call);
    Call shared(call, kernels_.train, view(), std::move(uses), before, options_.max_norm, poll);
    const double useful = 3.0 * double(n_weights_) * double(rows) / kWorthAThread;
    const int team = int(std::max(1.0, std::min(double(threads), useful)));
    shared.team.run(team, [&shared](int i) { shared.work(i); });
    steps_.resize(size_t(before + shared.done + 1));
    steps_done_ += shared.done;
    return shared.done;
}

}  // namespace df::cpu
