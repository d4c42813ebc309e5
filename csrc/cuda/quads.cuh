// Which elements a thread works on, and their normals. A quad is up to four elements of one sample, what one
// call of Philox serves; a pack is 16 bytes of a tensor, whole quads or, in one and two dimensions, several
// samples.
#pragma once
#include <stdexcept>

#include "../noise.h"
#include "device.h"

namespace df::cuda {

constexpr int kThreads = 256;  // of a block

// Division by a number that is fixed for a launch: a product and a correction, where the 64-bit division of
// the device takes some 100 instructions.
struct Divisor {
    uint64_t reciprocal;  // floor((2^64 - 1) / value): the quotient from it is right or 1 too small
    uint32_t value;

    explicit Divisor(uint32_t v) : reciprocal(~uint64_t(0) / v), value(v) {}

    __device__ __forceinline__ uint64_t divide(uint64_t a, uint32_t& remainder) const {
        uint64_t quotient = uint64_t((unsigned __int128)(a)*reciprocal >> 64);
        uint64_t rest = a - quotient * value;
        if (rest >= value) {
            ++quotient;
            rest -= value;
        }
        remainder = uint32_t(rest);
        return quotient;
    }
};

inline uint32_t quads_of(int64_t dim) { return uint32_t((dim + 3) / 4); }

// N elements that follow each other in memory: `count` of them are there. sample, quad: of each four
// elements; in one and two dimensions sample[0] is the first of them and quad 0.
template <int N>
struct Elements {
    uint64_t first, sample[(N + 3) / 4];
    uint32_t quad[(N + 3) / 4];
    int count;
};

template <int N>
__device__ __forceinline__ Elements<N> pack_at(uint64_t index, const Divisor& quads, int64_t dim) {
    Elements<N> e;
    e.first = index * N;
    e.count = N;
    if (dim <= 2) {
        e.sample[0] = e.first >> (dim - 1);
        e.quad[0] = 0;
        return e;
    }
    e.sample[0] = quads.divide(index * (N / 4), e.quad[0]);
#pragma unroll
    for (int k = 1; k < N / 4; ++k) {
        const bool next = e.quad[k - 1] + 1 == quads.value;
        e.sample[k] = e.sample[k - 1] + (next ? 1 : 0);
        e.quad[k] = next ? 0 : e.quad[k - 1] + 1;
    }
    return e;
}

__device__ __forceinline__ Elements<4> quad_at(uint64_t index, const Divisor& quads, int64_t dim) {
    Elements<4> e;
    e.sample[0] = quads.divide(index, e.quad[0]);
    e.first = e.sample[0] * uint64_t(dim) + 4 * uint64_t(e.quad[0]);
    const int64_t left = dim - 4 * int64_t(e.quad[0]);
    e.count = left < 4 ? int(left) : 4;
    return e;
}

// How a launch of n samples is cut: packs first, then what they leave, quad by quad.
struct Cut {
    Divisor quads;  // of one sample
    uint64_t packs, items, first_quad;

    // per_pack: elements; packs only where rows of them are aligned.
    Cut(int64_t n, int64_t dim, int per_pack, bool aligned)
        : quads(quads_of(dim)), packs(aligned ? uint64_t(n) * uint64_t(dim) / uint32_t(per_pack) : 0) {
        const uint64_t per_quad = dim < 4 ? uint64_t(dim) : 4;
        first_quad = packs * uint32_t(per_pack) / per_quad;
        items = packs + uint64_t(n) * quads.value - first_quad;
    }

    dim3 grid() const {
        const uint64_t blocks = (items + kThreads - 1) / kThreads;
        if (blocks > 0x7fffffffu) throw std::invalid_argument("n: too many elements for one launch");
        return dim3(uint32_t(blocks));
    }
};

__device__ __forceinline__ uint64_t item_index() { return uint64_t(blockIdx.x) * kThreads + threadIdx.x; }

// What normals are drawn from besides the key.
struct Draw {
    uint64_t start;
    int64_t dim;
    uint32_t word, component, substream;

    Draw(uint64_t start_, int64_t dim_, uint32_t step, Purpose purpose, uint32_t sub)
        : start(start_), dim(dim_), substream(sub) {
        word = step_word(step, purpose, uint32_t(dim_), component);
    }

    // The same at the step that stands in device memory.
    __device__ __forceinline__ void move_to(int64_t step) {
        word = step_word(uint32_t(step) & 0x0fffffffu, Purpose(word >> 28), uint32_t(dim), component);
    }

    // The words of one quad of a sample, counted from start.
    __device__ __forceinline__ void words(const RoundKeys& keys, uint64_t sample, uint32_t quad,
                                          uint32_t c[4]) const {
        const uint64_t index = start + sample;
        c[0] = quad;
        c[1] = word;
        c[2] = uint32_t(index);
        c[3] = uint32_t(index >> 32) | substream << 16;
        philox4x32_10<ScalarLanes>(c, keys);
    }

    // The pair of a call's normals that belongs to this step, in one and two dimensions.
    __device__ __forceinline__ void pair(const RoundKeys& keys, uint64_t sample, float& z0, float& z1) const {
        uint32_t c[4];
        words(keys, sample, 0, c);
        const bool second = component & 2;
        box_muller<ScalarLanes>(second ? c[2] : c[0], second ? c[3] : c[1], z0, z1);
    }

    template <int N>
    __device__ __forceinline__ void normals(const RoundKeys& keys, const Elements<N>& e, float z[N]) const {
        float z0, z1;
        if (dim == 1) {
#pragma unroll
            for (int k = 0; k < N; ++k)
                if (k < e.count) {
                    pair(keys, e.sample[0] + k, z0, z1);
                    z[k] = component & 1 ? z1 : z0;
                }
        } else if (dim == 2) {
#pragma unroll
            for (int k = 0; k < N; k += 2)
                if (k < e.count) pair(keys, e.sample[0] + k / 2, z[k], z[k + 1]);
        } else {
#pragma unroll
            for (int k = 0; k < N / 4; ++k) {
                uint32_t c[4];
                words(keys, e.sample[k], e.quad[k], c);
                box_muller<ScalarLanes>(c[0], c[1], z[4 * k], z[4 * k + 1]);
                box_muller<ScalarLanes>(c[2], c[3], z[4 * k + 2], z[4 * k + 3]);
            }
        }
    }
};

// Loads a kernel on the current device.
template <class Kernel>
void load(Kernel* kernel) {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
}

}  // namespace df::cuda
