// The noise stream, version 1: counter-based normals, one source for every instruction set and for CUDA.
//
//   z = normal(seed, sample, step, element):   Philox4x32-10 (Salmon et al. 2011), then Box-Muller
//   key     = (seed[31:0], seed[63:32])
//   counter = (quad, step word, sample[31:0], sample[47:32] | substream << 16);  quad q covers elements 4q ..
//   4q+3 step word = step | purpose << 28, except that for purpose 0 (table rows) and 1 or 2 elements per
//   sample one call serves 4 or 2 consecutive steps: the word holds step >> 2 or step >> 1, the rest picks
//   the component(s).
//
// The bits are the same everywhere because every operation is an integer operation, exact, or one IEEE
// round-to-nearest operation (fma, mul, sqrt, int -> float). Compile with -ffp-contract=off.
//
// A "lane type" L supplies the number types and operations: ScalarLanes below, SIMD vectors in cpu/simd.h.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define DF_ANYWHERE __host__ __device__
#define DF_INLINE __host__ __device__ __forceinline__
#else
#define DF_ANYWHERE
// Forced inlining: a copy compiled for one instruction set must never serve another.
#define DF_INLINE inline __attribute__((always_inline))
#endif

namespace df {

enum Purpose : uint32_t { kPurposeStep = 0, kPurposeInitial = 1, kPurposeForward = 3 };

// Steps one Philox call serves for table rows: 4 in one dimension, 2 in two, else 1.
DF_INLINE uint32_t steps_per_call(uint32_t dim) { return dim == 1 ? 4u : dim == 2 ? 2u : 1u; }

// The step word of the counter; `component` is the first of the call's four normals that belongs to this
// step.
DF_INLINE uint32_t step_word(uint32_t step, Purpose purpose, uint32_t dim, uint32_t& component) {
    const uint32_t share = purpose == kPurposeStep ? steps_per_call(dim) : 1u;
    component = (step % share) * dim;
    return (step / share) | (uint32_t(purpose) << 28);
}

struct ScalarLanes {
    using F = float;
    using U = uint32_t;
    using I = int32_t;
#if defined(__CUDA_ARCH__)
    static DF_INLINE F fma(F a, F b, F c) { return __fmaf_rn(a, b, c); }
    static DF_INLINE F mul(F a, F b) { return __fmul_rn(a, b); }
    static DF_INLINE F sub(F a, F b) { return __fsub_rn(a, b); }
    static DF_INLINE F sqrt(F a) { return __fsqrt_rn(a); }
    static DF_INLINE F from_unsigned(U a) { return __uint2float_rn(a); }
    static DF_INLINE F from_signed(I a) { return __int2float_rn(a); }
    static DF_INLINE F as_float(U a) { return __uint_as_float(a); }
    static DF_INLINE U as_bits(F a) { return __float_as_uint(a); }
#else
    static DF_INLINE F fma(F a, F b, F c) { return __builtin_fmaf(a, b, c); }
    static DF_INLINE F mul(F a, F b) { return a * b; }
    static DF_INLINE F sub(F a, F b) { return a - b; }
    static DF_INLINE F sqrt(F a) { return __builtin_sqrtf(a); }
    static DF_INLINE F from_unsigned(U a) { return float(a); }
    static DF_INLINE F from_signed(I a) { return float(a); }
    static DF_INLINE F as_float(U a) {
        F f;
        memcpy(&f, &a, 4);
        return f;
    }
    static DF_INLINE U as_bits(F a) {
        U u;
        memcpy(&u, &a, 4);
        return u;
    }
#endif
    static DF_INLINE F splat(float a) { return a; }
    static DF_INLINE U splat_bits(uint32_t a) { return a; }
    static DF_INLINE F max(F a, F b) { return a > b ? a : b; }
    static DF_INLINE F select(bool mask, F a, F b) { return mask ? a : b; }
    static DF_INLINE bool nonzero(U a) { return a != 0; }
    static DF_INLINE I to_signed(U a) { return I(a); }
    static DF_INLINE void mul_hi_lo(U a, uint32_t b, U& hi, U& lo) {
        const uint64_t p = uint64_t(a) * b;
        hi = uint32_t(p >> 32);
        lo = uint32_t(p);
    }
    static DF_INLINE U xor3(U a, U b, uint32_t c) { return a ^ b ^ c; }
};

// The keys of the ten rounds: made once for a call, and read from memory as they are needed.
struct RoundKeys {
    uint32_t k0[10], k1[10];

    RoundKeys() = default;
    DF_INLINE explicit RoundKeys(uint64_t seed) {
        for (uint32_t i = 0; i < 10; ++i) {
            k0[i] = uint32_t(seed) + i * 0x9E3779B9u;
            k1[i] = uint32_t(seed >> 32) + i * 0xBB67AE85u;
        }
    }
};

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;

// Rounds kFrom to 9.
template <class L, int kFrom = 0>
DF_INLINE void philox4x32_10(typename L::U c[4], const RoundKeys& keys) {
#if defined(__CUDA_ARCH__)
#pragma unroll
#elif defined(__GNUC__) && !defined(__CUDACC__)
#pragma GCC unroll 10
#endif
    for (int round = kFrom; round < 10; ++round) {
        typename L::U hi0, lo0, hi1, lo1;
        L::mul_hi_lo(c[0], kPhiloxM0, hi0, lo0);
        L::mul_hi_lo(c[2], kPhiloxM1, hi1, lo1);
        c[0] = L::xor3(hi1, c[1], keys.k0[round]);
        c[1] = lo1;
        c[2] = L::xor3(hi0, c[3], keys.k1[round]);
        c[3] = lo0;
    }
}

// The same for counters (quad, word, sample_lo, sample_hi) of which only sample_lo differs between the lanes:
// of the first two rounds' four products two are then scalars. A fifth less time than ten whole rounds.
template <class L>
DF_INLINE void philox_of_samples(typename L::U c[4], const RoundKeys& keys, uint32_t quad, uint32_t word,
                                 typename L::U sample_lo, uint32_t sample_hi) {
    const uint64_t of_quad = uint64_t(quad) * kPhiloxM0;
    const uint64_t shared = uint64_t(uint32_t(of_quad >> 32) ^ sample_hi ^ keys.k1[0]) * kPhiloxM1;
    typename L::U hi0, hi1, lo1;
    L::mul_hi_lo(sample_lo, kPhiloxM1, hi1, lo1);
    L::mul_hi_lo(hi1 ^ L::splat_bits(word ^ keys.k0[0]), kPhiloxM0, hi0, c[3]);
    c[0] = lo1 ^ L::splat_bits(uint32_t(shared >> 32) ^ keys.k0[1]);
    c[1] = L::splat_bits(uint32_t(shared));
    c[2] = hi0 ^ L::splat_bits(uint32_t(of_quad) ^ keys.k1[1]);
    philox4x32_10<L, 2>(c, keys);
}

// Two uniform words -> two independent N(0, 1):  r = sqrt(-2 ln u),  z0 = r cos(angle), z1 = r sin(angle).
// Minimax polynomials for log on [sqrt(1/2), sqrt(2)) and for sin, cos of pi/4 * [-1, 1].
template <class L>
DF_INLINE void box_muller(typename L::U a, typename L::U b, typename L::F& z0, typename L::F& z1) {
    using F = typename L::F;
    using U = typename L::U;
    const auto k = [](float x) __attribute__((always_inline)) { return L::splat(x); };
    // u = (a + 1/2) / 2^32 in (0, 1];  u = 2^e (1 + t)
    const F u = L::fma(L::from_unsigned(a), k(0x1p-32f), k(0x1p-33f));
    const U ix = L::as_bits(u) + L::splat_bits(0x3f800000u - 0x3f3504f3u);
    const F e = L::from_signed(L::to_signed(ix >> 23) - L::to_signed(L::splat_bits(127)));
    const F t = L::sub(L::as_float((ix & L::splat_bits(0x007fffffu)) + L::splat_bits(0x3f3504f3u)), k(1.0f));
    F p = k(-0.07644994526465995f);
    p = L::fma(p, t, k(0.12921948383697276f));
    p = L::fma(p, t, k(-0.1324271869082755f));
    p = L::fma(p, t, k(0.14179254662217655f));
    p = L::fma(p, t, k(-0.16608795737960333f));
    p = L::fma(p, t, k(0.20002087862519263f));
    p = L::fma(p, t, k(-0.25001598487095755f));
    p = L::fma(p, t, k(0.333333242310728f));
    p = L::fma(p, t, k(-0.4999998816669841f));
    F l = L::fma(e, k(-1.38629436492919921875f), L::mul(k(-2.0f), L::fma(p, L::mul(t, t), t)));  // -2 ln u
    l = L::max(l, k(0x1p-60f));  // u == 1 rounds to -2 ln u <= 0: keeps sqrt defined
    const U r = L::as_bits(L::sqrt(l));
    // angle = 2 pi b / 2^32 = quadrant (q[31:30]) plus a remainder in [-pi/4, pi/4)
    const U q = b + L::splat_bits(0x20000000u);
    const F z = L::mul(L::from_signed(L::to_signed(b - (q & L::splat_bits(0xC0000000u)))), k(0x1p-29f));
    const F w = L::mul(z, z);
    F s = L::fma(k(-3.595045227485046e-05f), w, k(0.0024900010240756837f));
    s = L::fma(s, w, k(-0.0807454325291785f));
    s = L::fma(s, w, k(0.7853981608541724f));
    s = L::mul(s, z);
    F c = L::fma(k(3.5287616258452394e-06f), w, k(-0.00032593650043471524f));
    c = L::fma(c, w, k(0.015854323912249568f));
    c = L::fma(c, w, k(-0.3084251348911883f));
    c = L::fma(c, w, k(1.0f));
    const auto swap = L::nonzero(q & L::splat_bits(0x40000000u));
    const U sign = L::splat_bits(0x80000000u);
    z0 = L::mul(L::as_float(r ^ ((q + L::splat_bits(0x40000000u)) & sign)), L::select(swap, s, c));
    z1 = L::mul(L::as_float(r ^ (q & sign)), L::select(swap, c, s));
}

// The four normals of one quad. `sample_hi` holds sample[47:32] | substream << 16.
template <class L>
DF_INLINE void normal4(const RoundKeys& keys, typename L::U quad, uint32_t word, typename L::U sample_lo,
                       typename L::U sample_hi, typename L::F z[4]) {
    typename L::U c[4] = {quad, L::splat_bits(word), sample_lo, sample_hi};
    philox4x32_10<L>(c, keys);
    box_muller<L>(c[0], c[1], z[0], z[1]);
    box_muller<L>(c[2], c[3], z[2], z[3]);
}

// The same where only sample_lo differs between the lanes.
template <class L>
DF_INLINE void normal4_of_samples(const RoundKeys& keys, uint32_t quad, uint32_t word,
                                  typename L::U sample_lo, uint32_t sample_hi, typename L::F z[4]) {
    typename L::U c[4];
    philox_of_samples<L>(c, keys, quad, word, sample_lo, sample_hi);
    box_muller<L>(c[0], c[1], z[0], z[1]);
    box_muller<L>(c[2], c[3], z[2], z[3]);
}

}  // namespace df
