#include "run.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#include "floating_point.h"
#include "tables.h"

namespace df::cpu {
namespace {

using Clock = std::chrono::steady_clock;

// Runs work(i) for i = 0 .. threads - 1, i = 0 on the calling thread, which then calls idle() every 50 ms
// until the others are done. work and idle must not throw.
template <class Work, class Idle>
void parallel(int threads, Work work, Idle idle) {
    std::mutex mutex;
    std::condition_variable finished;
    int running = 0;
    std::vector<std::thread> others;
    const auto guarded = [&work](int i) {
        FloatingPointState state;
        work(i);
    };
    const auto other = [&](int i) {
        guarded(i);
        const std::lock_guard<std::mutex> lock(mutex);
        --running;
        finished.notify_one();
    };
    others.reserve(size_t(threads));  // nothing may throw while a thread is running
    int started = 1;
    try {
        for (; started < threads; ++started) {
            {
                const std::lock_guard<std::mutex> lock(mutex);
                ++running;
            }
            others.emplace_back(other, started);
        }
    } catch (const std::system_error&) {  // no more threads to be had: the calling thread does their share
        const std::lock_guard<std::mutex> lock(mutex);
        --running;
    }
    guarded(0);
    for (int i = started; i < threads; ++i) guarded(i);
    {
        std::unique_lock<std::mutex> lock(mutex);
        while (!finished.wait_for(lock, std::chrono::milliseconds(50), [&running] { return running == 0; })) {
            lock.unlock();
            idle();
            lock.lock();
        }
    }
    for (std::thread& t : others) t.join();
}

// State shared by the threads of one call.
struct Chain {
    ChainArgs args;
    Poll poll;
    int tile;
    std::atomic<int64_t> next{0}, done{0};
    std::atomic<bool> stop{false};
    std::mutex mutex;
    ChainReport report{0, {}};

    void serve() {
        if (!poll.function(poll.context, done.load())) stop = true;
    }

    void note_bad_rows(int64_t first, int count) {
        const int dim = args.program.dim;
        for (int64_t i = first; i < first + count; ++i) {
            const float* row = args.out + i * dim;
            if (std::all_of(row, row + dim, [](float v) { return std::isfinite(v); })) continue;
            const std::lock_guard<std::mutex> lock(mutex);
            ++report.bad_rows;
            std::vector<int64_t>& worst = report.first_bad;
            worst.insert(std::upper_bound(worst.begin(), worst.end(), i), i);
            if (worst.size() > 8) worst.pop_back();
        }
    }
};

// What keep_going looks at: every thread the stop flag, the calling thread now and then the clock.
struct Worker {
    Chain& chain;
    bool is_caller;
    unsigned
        clock_mask;  // the clock is read every clock_mask + 1 steps: a read is 25 ns, a small step 300 ns
    unsigned calls = 0;
    Clock::time_point last = Clock::now();

    static bool keep_going(void* self) { return static_cast<Worker*>(self)->check(); }

    bool check() {
        if (chain.stop.load(std::memory_order_relaxed)) return false;
        if (!is_caller || (++calls & clock_mask)) return true;
        const auto now = Clock::now();
        if (now - last < std::chrono::milliseconds(50)) return true;
        last = now;
        chain.serve();
        return !chain.stop;
    }
};

// run(args, scratch, first, count) for all samples, a tile at a time, until it is false. work: the most
// multiply-adds from one keep_going to the next.
template <class Run>
void over_tiles(Chain& chain, const Kernels& kernels, int threads, int64_t work, Run run) {
    const int64_t floats = kernels.scratch_floats(chain.args) + 16;
    std::unique_ptr<float[]> scratch(new float[size_t(floats) * size_t(threads)]);
    const auto work_on = [&](int i) {
        const auto base = (reinterpret_cast<uintptr_t>(scratch.get() + floats * i) + 63) / 64 * 64;
        Worker worker{chain, i == 0, work > 1000000 ? 0u : 15u};
        ChainArgs args = chain.args;
        args.keep_going = &Worker::keep_going;
        args.watcher = &worker;
        for (;;) {
            const int64_t first = chain.next.fetch_add(chain.tile);
            if (first >= args.n) return;
            const int count = int(std::min<int64_t>(chain.tile, args.n - first));
            if (!run(args, reinterpret_cast<float*>(base), first, count)) return;
            chain.done += count;
        }
    };
    parallel(threads, work_on, [&chain] { chain.serve(); });
}

// Samples per tile: full tiles for long calls, smaller equal ones when there are too few to go round.
int tile_size(int lanes, int samples, int64_t n, int threads) {
    const int64_t vectors = (n + lanes - 1) / lanes, full = samples / lanes;
    const int64_t rounds = (vectors + threads * full - 1) / (threads * full);
    return int(std::min(full, (vectors + rounds * threads - 1) / (rounds * threads)) * lanes);
}

// Starting a thread costs some 20 us; each should get at least twice that, at about 50 multiply-adds a ns.
int useful_threads(int threads, double multiply_adds) {
    return int(std::max(1.0, std::min(double(threads), multiply_adds / 2e6)));
}

}  // namespace

ChainReport run_chain(const Program& program, ChainArgs args, int threads, Poll poll) {
    if (args.n == 0) return {0, {}};
    args.program = program.view();
    const Kernels& kernels = program.kernels();
    const int64_t work = args.tables ? kLookupWork[args.program.dim - 1] : program.work_per_step();
    threads =
        useful_threads(threads, double(work + 32 * args.program.dim) * double(args.n) * args.program.n_rows);
    threads = int(std::min<int64_t>(threads, (args.n + kernels.lanes - 1) / kernels.lanes));

    Chain chain{};
    chain.args = args;
    chain.poll = poll;
    chain.report.first_bad.reserve(9);  // so that noting bad rows never allocates
    const int samples = args.tables ? args.tables->block : program.tile().samples;
    chain.tile = tile_size(kernels.lanes, samples, args.n, threads);
    // with tables a block of look-ups, or a tile of the samples beside the grids
    const int64_t longest = std::max(work * chain.tile, program.work_per_step() * program.tile().samples);
    over_tiles(chain, kernels, threads, longest, [&](const ChainArgs& a, float* s, int64_t first, int count) {
        if (!kernels.chain(a, s, first, count)) return false;
        chain.note_bad_rows(first, count);
        return true;
    });
    return chain.report;
}

void run_network(const Program& program, ChainArgs args, int row, int threads, Poll poll) {
    if (args.n == 0) return;
    args.program = program.view();
    const Kernels& kernels = program.kernels();
    const int64_t work = program.work_per_step();
    threads = useful_threads(threads, double(work) * double(args.n));
    threads = int(std::min<int64_t>(threads, (args.n + kernels.lanes - 1) / kernels.lanes));

    Chain chain{};
    chain.args = args;
    chain.poll = poll;
    chain.tile = tile_size(kernels.lanes, program.tile().samples, args.n, threads);
    over_tiles(chain, kernels, threads, work * chain.tile,
               [&](const ChainArgs& a, float* s, int64_t first, int count) {
                   return kernels.network(a, s, row, first, count);
               });
}

namespace {

// Quads [0, quads) in contiguous shares, cut at multiples of 512 quads.
template <class Work>
void over_quads(int64_t n, int64_t dim, int threads, Work work) {
    const int64_t quads = n * ((dim + 3) / 4);
    threads = useful_threads(threads, double(n) * double(dim) * 32);
    const int64_t share = ((quads + threads - 1) / threads + 511) / 512 * 512;
    const auto work_on = [&](int i) {
        const int64_t begin = std::min(quads, i * share), end = std::min(quads, begin + share);
        if (begin < end) work(begin, end);
    };
    parallel(threads, work_on, [] {});
}

}  // namespace

void run_step(const Kernels& kernels, StepArgs args, int threads) {
    // Guidance rescale and dynamic thresholding look at each sample as a whole, so they go first.
    std::vector<float> factor, threshold, scratch;
    if (args.row.rescale != 0.0f && args.uncond_output) factor.resize(size_t(args.n));
    if (args.row.quantile != 0.0f) threshold.resize(size_t(args.n));
    if (!factor.empty() || !threshold.empty()) {
        const int workers = useful_threads(threads, double(args.n) * double(args.dim) * 64);
        const int64_t row = (args.dim + kStatisticsPadding - 1) / kStatisticsPadding * kStatisticsPadding;
        scratch.resize(size_t(workers * kStatisticsRows * row));
        const auto work_on = [&](int i) {
            kernels.step_statistics(args, args.n * i / workers, args.n * (i + 1) / workers,
                                    scratch.data() + i * kStatisticsRows * row, factor.data(),
                                    threshold.data());
        };
        parallel(workers, work_on, [] {});
        args.factor = factor.empty() ? nullptr : factor.data();
        args.threshold = threshold.empty() ? nullptr : threshold.data();
    }
    over_quads(args.n, args.dim, threads,
               [&](int64_t begin, int64_t end) { kernels.step(args, begin, end); });
}

void run_noise(const Kernels& kernels, const NoiseArgs& args, int threads) {
    over_quads(args.n, args.dim, threads,
               [&](int64_t begin, int64_t end) { kernels.noise(args, begin, end); });
}

double product_peak(const Kernels& kernels, bool pairs, int threads, double seconds) {
    const int candidates[] = {8, 10, 12};
    double best = 0.0;
    for (int chains : candidates) {
        const auto begin = Clock::now();
        int64_t iterations = 1 << 20;
        while (Clock::now() - begin < std::chrono::duration<double>(seconds / 3)) {
            std::vector<double> count(size_t(threads), 0.0);
            const auto start = Clock::now();
            const auto work = [&](int i) {
                count[size_t(i)] = kernels.product_burst(pairs, iterations, chains);
            };
            parallel(threads, work, [] {});
            const double took = std::chrono::duration<double>(Clock::now() - start).count();
            double total = 0.0;
            for (double c : count) total += c;
            best = std::max(best, 2e-9 * total / took);
            if (took < 0.02) iterations *= 2;  // long enough that starting threads does not count
        }
    }
    return best;
}

}  // namespace df::cpu
