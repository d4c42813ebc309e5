// What guidance rescale and dynamic thresholding need of each sample as a whole: cpu/statistics.h on the
// device, to the bit. A team of threads, a warp or a block, has one sample.
//
// Sums run in the CPU's order, 16 parts of which part i takes features i, i + 16, ...: the team brings a
// piece of the sample into shared memory, 16 of its threads add.
#pragma once
#include "elements.cuh"

namespace df::cuda {

constexpr int kParts = 16, kPieceRows = 16, kBins = 256, kSmallSample = 512;  // elements that a warp has

struct StatisticsParams {
    StepArgs args;
    float *factor, *threshold;  // (n) each, or null where not asked for
    uint32_t rank;              // of the magnitudes of a sample, from 0
    float fraction;             // of the way to the next one
};

template <int Threads>
struct Team {
    static constexpr int kPiece = Threads * kPieceRows;
    static constexpr size_t kBytes = (kPiece + kBins + 4) * 4;

    float* piece;      // (kPiece)
    uint32_t* counts;  // (kBins)
    float* result;
    uint32_t* found;  // a digit, and the rank among those that have it
    int thread;

    __device__ __forceinline__ explicit Team(unsigned char* memory)
        : piece(reinterpret_cast<float*>(memory + threadIdx.x / Threads * kBytes)),
          counts(reinterpret_cast<uint32_t*>(piece + kPiece)),
          result(piece + kPiece + kBins),
          found(counts + kBins + 1),
          thread(int(threadIdx.x % Threads)) {}

    static __device__ __forceinline__ void sync() {
        if constexpr (Threads == 32)
            __syncwarp();
        else
            __syncthreads();
    }

    template <class Term>
    __device__ __forceinline__ float sum(int64_t dim, Term term) const {
        float part = 0.0f;
        for (int64_t base = 0; base < dim; base += kPiece) {
            const int here = dim - base < kPiece ? int(dim - base) : kPiece;
            sync();  // the piece before has been added
            for (int j = thread; j < here; j += Threads) piece[j] = term(base + j);
            sync();
            if (thread < kParts)
                for (int j = thread; j < here; j += kParts)
                    part = base == 0 && j < kParts ? piece[j] : part + piece[j];
        }
        if (thread < 32) {
            for (int half = kParts / 2; half > 0; half /= 2)
                part += __shfl_down_sync(0xffffffffu, part, uint32_t(half));
            if (thread == 0) *result = part;
        }
        sync();
        const float total = *result;
        sync();  // before it is written again
        return total;
    }

    template <class Value>
    __device__ __forceinline__ float variance(int64_t dim, Value value) const {
        const float count = float(dim), mean = sum(dim, value) / count;
        return sum(dim,
                   [&](int64_t j) {
                       const float d = value(j) - mean;
                       return d * d;
                   }) /
               count;
    }

    // The rank-th smallest of |value|, from 0. Magnitudes are ordered as their bits: eight of them at a time,
    // from the highest, by how many magnitudes have each digit.
    template <class Value>
    __device__ __forceinline__ float magnitude(int64_t dim, uint32_t rank, Value value) const {
        uint32_t known = 0;
        for (int shift = 24; shift >= 0; shift -= 8) {
            for (int bin = thread; bin < kBins; bin += Threads) counts[bin] = 0;
            sync();
            for (int64_t j = thread; j < dim; j += Threads) {
                const uint32_t bits = ScalarLanes::as_bits(value(j)) & 0x7fffffffu;
                if (uint64_t(bits ^ known) >> (shift + 8) == 0) atomicAdd(&counts[bits >> shift & 255], 1u);
            }
            sync();
            if (thread < 32) find_digit(rank);
            sync();
            known |= found[0] << shift;
            rank = found[1];
            sync();
        }
        return ScalarLanes::as_float(known);
    }

  private:
    // A warp: each lane has eight digits.
    __device__ __forceinline__ void find_digit(uint32_t rank) const {
        constexpr int kEach = kBins / 32;
        const uint32_t* mine = counts + thread * kEach;
        uint32_t own = 0;
        for (int i = 0; i < kEach; ++i) own += mine[i];
        uint32_t upto = own;
        for (int distance = 1; distance < 32; distance *= 2) {
            const uint32_t below = __shfl_up_sync(0xffffffffu, upto, uint32_t(distance));
            if (thread >= distance) upto += below;
        }
        uint32_t left = rank - (upto - own);
        if (rank >= upto || rank < upto - own) return;
        int digit = 0;
        for (; left >= mine[digit]; ++digit) left -= mine[digit];
        found[0] = uint32_t(thread * kEach + digit);
        found[1] = left;
    }
};

template <Dtype D, int Threads>
__global__ void __launch_bounds__(kThreads) statistics_kernel(const __grid_constant__ StatisticsParams p) {
    using E = Format<D>;
    const StepArgs& a = p.args;
    const StepRow& r = a.row;
    const Team<Threads> team(shared_memory());
    const uint64_t sample = uint64_t(blockIdx.x) * (kThreads / Threads) + threadIdx.x / Threads;
    if (sample >= uint64_t(a.n)) return;  // a whole team
    const auto at = [&, from = sample * uint64_t(a.dim)](const void* tensor, int64_t j) {
        return E::value(static_cast<const typename E::T*>(tensor)[from + uint64_t(j)]);
    };

    const float scale = a.guidance_scales ? a.guidance_scales[sample] : a.guidance_scale;
    const auto guided = [&](int64_t j) {
        if (!a.model_output) return 0.0f;
        const float c = at(a.model_output, j);
        if (!a.uncond_output) return c;
        const float u = at(a.uncond_output, j);
        return ScalarLanes::fma(scale, c - u, u);
    };
    float factor = 1.0f;
    if (p.factor) {
        const float of_c = team.variance(a.dim, [&](int64_t j) { return at(a.model_output, j); });
        const float of_F = team.variance(a.dim, guided);
        factor = r.rescale * ScalarLanes::sqrt(of_c / of_F) + (1.0f - r.rescale);
        if (team.thread == 0) p.factor[sample] = factor;
    }
    if (!p.threshold) return;
    const auto m = [&](int64_t j) {
        const float first = a.terms & kTermPx ? r.p_x * at(a.x, j) : 0.0f;
        if (!(a.terms & kTermPF)) return first;
        const float F = guided(j);
        return ScalarLanes::fma(r.p_F, p.factor ? factor * F : F, first);
    };
    float limit = team.magnitude(a.dim, p.rank, m);
    if (p.fraction != 0.0f)
        limit = ScalarLanes::fma(p.fraction, team.magnitude(a.dim, p.rank + 1, m) - limit, limit);
    const float low = r.clip < limit ? r.clip : limit;
    if (team.thread == 0) p.threshold[sample] = 1.0f > low ? 1.0f : low;
}

}  // namespace df::cuda
