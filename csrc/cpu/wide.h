// N vectors treated as one in noise.h, operation by operation. A Philox call and a Box-Muller transform are
// long chains of dependent operations; N of them side by side fill the latency: 1.18 G normals/s on a core
// for one vector at a time, 1.40 for two, 1.59 for four (Zen 4, 3.7 GHz).
#pragma once
#include "simd.h"

namespace df::DF_ISA {

template <class V, int N>
struct Pack {
    V v[N];
};

// r.v[i] = op(a.v[i]...) for each of the N vectors
template <class R, int N, class Op, class... A>
DF_INLINE Pack<R, N> map(Op op, const Pack<A, N>&... a) {
    Pack<R, N> r;
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) r.v[i] = op(a.v[i]...);
    return r;
}

template <class V, int N>
DF_INLINE Pack<V, N> operator+(const Pack<V, N>& a, const Pack<V, N>& b) {
    return map<V, N>([](V x, V y) { return x + y; }, a, b);
}
template <class V, int N>
DF_INLINE Pack<V, N> operator-(const Pack<V, N>& a, const Pack<V, N>& b) {
    return map<V, N>([](V x, V y) { return x - y; }, a, b);
}
template <class V, int N>
DF_INLINE Pack<V, N> operator&(const Pack<V, N>& a, const Pack<V, N>& b) {
    return map<V, N>([](V x, V y) { return x & y; }, a, b);
}
template <class V, int N>
DF_INLINE Pack<V, N> operator|(const Pack<V, N>& a, const Pack<V, N>& b) {
    return map<V, N>([](V x, V y) { return x | y; }, a, b);
}
template <class V, int N>
DF_INLINE Pack<V, N> operator^(const Pack<V, N>& a, const Pack<V, N>& b) {
    return map<V, N>([](V x, V y) { return x ^ y; }, a, b);
}
template <class V, int N>
DF_INLINE Pack<V, N> operator>>(const Pack<V, N>& a, int bits) {
    return map<V, N>([bits](V x) { return x >> bits; }, a);
}

// The lane type of noise.h for N vectors at a time.
template <int N>
struct WideLanes {
    using F = Pack<vf, N>;
    using U = Pack<vu, N>;
    using I = Pack<vi, N>;
    using L = VectorLanes;
    static DF_INLINE F fma(const F& a, const F& b, const F& c) {
        return map<vf, N>([](vf x, vf y, vf z) { return L::fma(x, y, z); }, a, b, c);
    }
    static DF_INLINE F mul(const F& a, const F& b) {
        return map<vf, N>([](vf x, vf y) { return x * y; }, a, b);
    }
    static DF_INLINE F sub(const F& a, const F& b) { return a - b; }
    static DF_INLINE F sqrt(const F& a) {
        return map<vf, N>([](vf x) { return L::sqrt(x); }, a);
    }
    static DF_INLINE F from_unsigned(const U& a) {
        return map<vf, N>([](vu x) { return L::from_unsigned(x); }, a);
    }
    static DF_INLINE F from_signed(const I& a) {
        return map<vf, N>([](vi x) { return L::from_signed(x); }, a);
    }
    static DF_INLINE F as_float(const U& a) {
        return map<vf, N>([](vu x) { return vf(x); }, a);
    }
    static DF_INLINE U as_bits(const F& a) {
        return map<vu, N>([](vf x) { return vu(x); }, a);
    }
    static DF_INLINE F splat(float a) {
        F r;
        for (int i = 0; i < N; ++i) r.v[i] = L::splat(a);
        return r;
    }
    static DF_INLINE U splat_bits(uint32_t a) {
        U r;
        for (int i = 0; i < N; ++i) r.v[i] = L::splat_bits(a);
        return r;
    }
    static DF_INLINE F max(const F& a, const F& b) {
        return map<vf, N>([](vf x, vf y) { return L::max(x, y); }, a, b);
    }
    static DF_INLINE F select(const I& mask, const F& a, const F& b) {
        return map<vf, N>([](vi m, vf x, vf y) { return L::select(m, x, y); }, mask, a, b);
    }
    static DF_INLINE I nonzero(const U& a) {
        return map<vi, N>([](vu x) { return L::nonzero(x); }, a);
    }
    static DF_INLINE I to_signed(const U& a) {
        return map<vi, N>([](vu x) { return vi(x); }, a);
    }
    static DF_INLINE U xor3(const U& a, const U& b, uint32_t c) {
        return map<vu, N>([c](vu x, vu y) { return L::xor3(x, y, c); }, a, b);
    }
    static DF_INLINE void mul_hi_lo(const U& a, uint32_t b, U& hi, U& lo) {
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) L::mul_hi_lo(a.v[i], b, hi.v[i], lo.v[i]);
    }
};

// ---- feature-major vectors to rows in memory

#if defined(__AVX512F__)
// Element e of the output is component e % C of lane e / C. Indices of two-source permutes that bring in z[0]
// and z[1], then z[2], then z[3]; elements of other components stay where they are.
template <int C>
struct InterleaveIndices {
    int32_t v[C][C - 1][16];
    constexpr InterleaveIndices() : v{} {
        for (int k = 0; k < C; ++k)
            for (int source = 1; source < C; ++source)
                for (int j = 0; j < 16; ++j) {
                    const int component = (k * 16 + j) % C, lane = (k * 16 + j) / C;
                    v[k][source - 1][j] = component == source             ? lane + 16
                                          : source == 1 && component == 0 ? lane
                                                                          : j;
                }
    }
};
template <int C>
static constexpr InterleaveIndices<C> kInterleave{};
#endif

// rows[C l + i] = z[i][l]: C vectors of W lanes to W rows of C floats, as C vectors.
template <int C>
DF_INLINE void interleave(const vf (&z)[C], vf* rows) {
#if defined(__AVX512F__)
#pragma GCC unroll 3
    for (int k = 0; k < C; ++k) {
        vf r = z[0];
#pragma GCC unroll 2
        for (int source = 1; source < C; ++source)
            r = _mm512_permutex2var_ps(r, _mm512_loadu_si512(kInterleave<C>.v[k][source - 1]), z[source]);
        rows[k] = r;
    }
#elif defined(__AVX2__)
    // Rows of four lanes inside each half of a register, then the halves put in order.
    vf half[C];
    if constexpr (C == 2) {
        half[0] = _mm256_unpacklo_ps(z[0], z[1]);
        half[1] = _mm256_unpackhi_ps(z[0], z[1]);
        rows[0] = _mm256_permute2f128_ps(half[0], half[1], 0x20);
        rows[1] = _mm256_permute2f128_ps(half[0], half[1], 0x31);
    } else {
        const vf even01 = _mm256_shuffle_ps(z[0], z[1], 0x88), odd12 = _mm256_shuffle_ps(z[1], z[2], 0xdd),
                 even2_odd0 = _mm256_shuffle_ps(z[2], z[0], 0xd8);
        half[0] = _mm256_shuffle_ps(even01, even2_odd0, 0x88);
        half[1] = _mm256_shuffle_ps(odd12, even01, 0xd8);
        half[2] = _mm256_shuffle_ps(even2_odd0, odd12, 0xdd);
        rows[0] = _mm256_permute2f128_ps(half[0], half[1], 0x20);
        rows[1] = _mm256_permute2f128_ps(half[2], half[0], 0x30);
        rows[2] = _mm256_permute2f128_ps(half[1], half[2], 0x31);
    }
#else
    float all[C * W];
    for (int l = 0; l < W; ++l)
        for (int i = 0; i < C; ++i) all[C * l + i] = z[i][l];
    memcpy(rows, all, sizeof(all));
#endif
}

// The same for C = 4 with the lanes of z in another order, so that transposing 4 x 4 blocks is enough: lane l
// becomes row transposed_lane(l).
constexpr int transposed_lane(int l) { return W / 4 * (l % 4) + l / 4; }

DF_INLINE vu transposed_index() {
    vu r;
    for (int l = 0; l < W; ++l) r[l] = uint32_t(transposed_lane(l));
    return r;
}

DF_INLINE void transpose4(const vf (&z)[4], vf* rows) {
#if defined(__AVX512F__)
    const auto a = __m512d(_mm512_unpacklo_ps(z[0], z[1])), b = __m512d(_mm512_unpackhi_ps(z[0], z[1])),
               c = __m512d(_mm512_unpacklo_ps(z[2], z[3])), d = __m512d(_mm512_unpackhi_ps(z[2], z[3]));
    rows[0] = vf(_mm512_unpacklo_pd(a, c));
    rows[1] = vf(_mm512_unpackhi_pd(a, c));
    rows[2] = vf(_mm512_unpacklo_pd(b, d));
    rows[3] = vf(_mm512_unpackhi_pd(b, d));
#elif defined(__AVX2__)
    const auto a = __m256d(_mm256_unpacklo_ps(z[0], z[1])), b = __m256d(_mm256_unpackhi_ps(z[0], z[1])),
               c = __m256d(_mm256_unpacklo_ps(z[2], z[3])), d = __m256d(_mm256_unpackhi_ps(z[2], z[3]));
    rows[0] = vf(_mm256_unpacklo_pd(a, c));
    rows[1] = vf(_mm256_unpackhi_pd(a, c));
    rows[2] = vf(_mm256_unpacklo_pd(b, d));
    rows[3] = vf(_mm256_unpackhi_pd(b, d));
#else
    for (int i = 0; i < 4; ++i) rows[i] = vf{z[0][i], z[1][i], z[2][i], z[3][i]};
#endif
}

}  // namespace df::DF_ISA
