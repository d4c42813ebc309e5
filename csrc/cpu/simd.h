// SIMD vectors of float and 32-bit integers for one instruction set: 16 lanes (AVX-512), 8 (AVX2 + FMA) or 4
// (portable).
//
// Built on GCC/Clang vector extensions, with intrinsics only where those have no operator (fma, sqrt, the
// high half of a product). Every operation is exact or IEEE round-to-nearest, so a lane computes the same
// bits at every width. Everything lives in namespace df::DF_ISA and is forced inline: code of one instruction
// set never serves another.
#pragma once
#include "../noise.h"

#if defined(__AVX2__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own _mm512_undefined_*
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace df::DF_ISA {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

#if defined(__AVX512BF16__)
constexpr bool kHasBfloat16 = true;
#else
constexpr bool kHasBfloat16 = false;
#endif

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef uint16_t vh __attribute__((vector_size(2 * W)));  // W half-width floats, as bits
typedef float vf_u __attribute__((vector_size(4 * W), aligned(4)));
typedef uint32_t vu_u __attribute__((vector_size(4 * W), aligned(4)));
typedef vh vh_u __attribute__((aligned(2)));

// ---- arithmetic

DF_INLINE vf splat(float a) {
#if defined(__AVX512F__)
    return _mm512_set1_ps(a);
#elif defined(__AVX2__)
    return _mm256_set1_ps(a);
#else
    return vf{a, a, a, a};
#endif
}

DF_INLINE vu splat_bits(uint32_t a) {
#if defined(__AVX512F__)
    return vu(_mm512_set1_epi32(int(a)));
#elif defined(__AVX2__)
    return vu(_mm256_set1_epi32(int(a)));
#else
    return vu{a, a, a, a};
#endif
}

DF_INLINE vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
    return _mm256_fmadd_ps(a, b, c);
#else
    vf r;
    for (int i = 0; i < W; ++i) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return r;
#endif
}

DF_INLINE vf sqrt(vf a) {
#if defined(__AVX512F__)
    return _mm512_sqrt_ps(a);
#elif defined(__AVX2__)
    return _mm256_sqrt_ps(a);
#else
    vf r;
    for (int i = 0; i < W; ++i) r[i] = __builtin_sqrtf(a[i]);
    return r;
#endif
}

DF_INLINE vf select(vi mask, vf a, vf b) { return mask ? a : b; }
DF_INLINE vf abs(vf a) { return vf(vu(a) & splat_bits(0x7fffffffu)); }

// NaN in x comes back as NaN: a comparison with NaN is false, and the second operand is chosen (as vmaxps
// does).
DF_INLINE vf max_keep_nan(vf floor, vf x) {
#if defined(__AVX512F__)
    return _mm512_max_ps(floor, x);
#elif defined(__AVX2__)
    return _mm256_max_ps(floor, x);
#else
    return floor > x ? floor : x;
#endif
}
DF_INLINE vf min_keep_nan(vf ceiling, vf x) {
#if defined(__AVX512F__)
    return _mm512_min_ps(ceiling, x);
#elif defined(__AVX2__)
    return _mm256_min_ps(ceiling, x);
#else
    return ceiling < x ? ceiling : x;
#endif
}

// ---- memory

DF_INLINE vf load(const float* p) { return *reinterpret_cast<const vf_u*>(p); }
DF_INLINE void store(float* p, vf v) { *reinterpret_cast<vf_u*>(p) = vf_u(v); }
DF_INLINE vu load_bits(const uint32_t* p) { return *reinterpret_cast<const vu_u*>(p); }
DF_INLINE void store_bits(uint32_t* p, vu v) { *reinterpret_cast<vu_u*>(p) = vu_u(v); }
DF_INLINE vh load_half(const uint16_t* p) { return *reinterpret_cast<const vh_u*>(p); }
DF_INLINE void store_half(uint16_t* p, vh v) { *reinterpret_cast<vh_u*>(p) = v; }

DF_INLINE vu lane_index() {
    vu r;
    for (int i = 0; i < W; ++i) r[i] = uint32_t(i);
    return r;
}

// ---- conversions

DF_INLINE vf from_signed(vi a) { return __builtin_convertvector(a, vf); }
DF_INLINE vi to_signed(vf a) { return __builtin_convertvector(a, vi); }  // toward zero
DF_INLINE vf from_unsigned(vu a) {
#if defined(__AVX512F__)
    return _mm512_cvtepu32_ps(__m512i(a));
#else
    // hi 2^16 and lo are exact, so one fma rounds once, as a direct conversion does
    return fma(from_signed(vi(a >> 16)), splat(65536.0f), from_signed(vi(a & splat_bits(0xffffu))));
#endif
}

DF_INLINE vf from_bfloat16(vh h) { return vf(__builtin_convertvector(h, vu) << 16); }
DF_INLINE vu bfloat16_bits(vf x) {  // round to nearest even; NaN becomes the quiet NaN that torch writes
    const vu u = vu(x);
    const vu rounded = (u + splat_bits(0x7fffu) + ((u >> 16) & splat_bits(1))) >> 16;
    return vu(x != x ? vi(splat_bits(0x7fc0u)) : vi(rounded));
}
DF_INLINE vh to_bfloat16(vf x) { return __builtin_convertvector(bfloat16_bits(x), vh); }

// ---- products of pairs of bfloat16 numbers, two in each 32-bit lane, with float32 sums

DF_INLINE vu bfloat16_pairs(vf even, vf odd) {
#if defined(__AVX512BF16__)
    alignas(64) static constexpr uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                        21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                        11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const auto both = __m512i(_mm512_cvtne2ps_pbh(odd, even));
    return vu(_mm512_permutexvar_epi16(_mm512_load_si512(kOrder), both));
#else
    return bfloat16_bits(even) | bfloat16_bits(odd) << 16;
#endif
}

// acc + the odd ones' product + the even ones', each product exact and each sum rounded. What stands in for
// the instruction keeps subnormal numbers, which the instruction takes as zeros.
DF_INLINE vf dot_bfloat16(vf acc, vu a, vu b) {
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(acc, __m512bh(a), __m512bh(b));
#else
    const vu high = splat_bits(0xffff0000u);
    return fma(vf(a << 16), vf(b << 16), fma(vf(a & high), vf(b & high), acc));
#endif
}

DF_INLINE vf from_float16(vh h) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(__m256i(h));
#elif defined(__AVX2__)
    return _mm256_cvtph_ps(__m128i(h));
#else
    // Move exponent and mantissa into place and rescale by 2^112, which also normalises subnormals (exact).
    const vu bits = __builtin_convertvector(h, vu);
    const vu magnitude = bits & splat_bits(0x7fffu);
    vf x = vf(magnitude << 13) * splat(0x1p112f);
    const vf infinite =
        vf((magnitude << 13) | splat_bits(0x7f800000u));  // infinity and NaN keep their mantissa
    x = select(vi(magnitude) > vi(splat_bits(0x7bffu)), infinite, x);
    return vf(vu(x) | ((bits & splat_bits(0x8000u)) << 16));
#endif
}
DF_INLINE vh to_float16(vf x) {  // round to nearest even, overflow to infinity
#if defined(__AVX512F__)
    return vh(_mm512_cvtps_ph(__m512(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__AVX2__)
    return vh(_mm256_cvtps_ph(__m256(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
    const vu u = vu(x), magnitude = u & splat_bits(0x7fffffffu);
    const vu normal =
        (magnitude + splat_bits(0xfffu) + ((magnitude >> 13) & splat_bits(1)) - splat_bits(112u << 23)) >> 13;
    // Below 2^-14 adding 1/2 leaves the value, rounded to a multiple of 2^-24, in the low mantissa bits.
    const vu subnormal = vu(vf(magnitude) + splat(0.5f)) - splat_bits(0x3f000000u);
    vi h = vi(magnitude) < vi(splat_bits(113u << 23)) ? vi(subnormal) : vi(normal);
    h = vi(magnitude) >= vi(splat_bits(0x477ff000u)) ? vi(splat_bits(0x7c00u)) : h;
    h = x != x ? vi(splat_bits(0x7e00u)) : h;
    return __builtin_convertvector(vu(h) | ((u >> 16) & splat_bits(0x8000u)), vh);
#endif
}

// ---- the lane type of noise.h

struct VectorLanes {
    using F = vf;
    using U = vu;
    using I = vi;
    static DF_INLINE F fma(F a, F b, F c) { return DF_ISA::fma(a, b, c); }
    static DF_INLINE F mul(F a, F b) { return a * b; }
    static DF_INLINE F sub(F a, F b) { return a - b; }
    static DF_INLINE F sqrt(F a) { return DF_ISA::sqrt(a); }
    static DF_INLINE F from_unsigned(U a) { return DF_ISA::from_unsigned(a); }
    static DF_INLINE F from_signed(I a) { return DF_ISA::from_signed(a); }
    static DF_INLINE F as_float(U a) { return vf(a); }
    static DF_INLINE U as_bits(F a) { return vu(a); }
    static DF_INLINE F splat(float a) { return DF_ISA::splat(a); }
    static DF_INLINE U splat_bits(uint32_t a) { return DF_ISA::splat_bits(a); }
    static DF_INLINE F max(F a, F b) { return max_keep_nan(a, b); }
    static DF_INLINE F select(I mask, F a, F b) { return mask ? a : b; }
    static DF_INLINE I nonzero(U a) { return vi(a) != 0; }
    static DF_INLINE I to_signed(U a) { return vi(a); }
    static DF_INLINE U xor3(U a, U b, uint32_t c) { return a ^ b ^ DF_ISA::splat_bits(c); }
    // 32 x 32 -> 64 bits: products of the even and of the odd lanes, then their halves interleaved
    static DF_INLINE void mul_hi_lo(U a, uint32_t b, U& hi, U& lo) {
#if defined(__AVX512F__)
        const __m512i m = _mm512_set1_epi32(int(b)), v = __m512i(a);
        const __m512i even = _mm512_mul_epu32(v, m), odd = _mm512_mul_epu32(_mm512_srli_epi64(v, 32), m);
        lo = vu(_mm512_mask_shuffle_epi32(even, 0xAAAA, odd, _MM_PERM_CDAB));
        hi = vu(_mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_CDAB));
#elif defined(__AVX2__)
        const __m256i m = _mm256_set1_epi32(int(b)), v = __m256i(a);
        const __m256i even = _mm256_mul_epu32(v, m), odd = _mm256_mul_epu32(_mm256_srli_epi64(v, 32), m);
        lo = vu(_mm256_blend_epi32(even, _mm256_shuffle_epi32(odd, 0xB1), 0xAA));
        hi = vu(_mm256_blend_epi32(_mm256_shuffle_epi32(even, 0xB1), odd, 0xAA));
#else
        uint32_t h[W], l[W];
        for (int i = 0; i < W; ++i) {
            const uint64_t p = uint64_t(a[i]) * b;
            l[i] = uint32_t(p);
            h[i] = uint32_t(p >> 32);
        }
        memcpy(&hi, h, sizeof(hi));
        memcpy(&lo, l, sizeof(lo));
#endif
    }
};

}  // namespace df::DF_ISA
