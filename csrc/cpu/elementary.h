// exp, log, powers, sine and cosine on vectors, within a few ulp of the exact one for every float (envelope:
// tests/test_functions.py).
//
// Polynomials and rationals are minimax fits (relative error in the comment) whose coefficients are all of
// one sign where they are summed over a long range, so evaluation adds no cancellation. No libm, no
// approximate reciprocals: the bits are the same on every instruction set.
#pragma once
#include "../plan.h"
#if defined(__CUDACC__) || defined(DF_EMULATED)
#include "../cuda/one_lane.h"
#else
#include "simd.h"
#endif

namespace df::DF_ISA {

// c[0] + c[1] x + ... by Horner's rule, one fma a coefficient
template <int N>
DF_INLINE vf polynomial(vf x, const float (&c)[N]) {
    vf p = splat(c[N - 1]);
#pragma GCC unroll 8
    for (int i = N - 2; i >= 0; --i) p = fma(p, x, splat(c[i]));
    return p;
}

// x = n ln 2 + r, |r| <= ln 2 / 2, for |x| <= 150;  returns exp(r) - 1 = r + r^2 q(r)   (q: 1.2e-7, times
// r/2)
DF_INLINE vf exp_reduced(vf x, vf& n) {
    const vf magic = splat(0x1.8p23f);  // adding it rounds to an integer
    n = fma(x, splat(0x1.715476p0f), magic) - magic;
    vf r = fma(n, splat(-0x1.62e400p-1f), x);  // ln 2 to 15 bits: n times it is exact
    r = fma(n, splat(-0x1.7f7d1cp-20f), r);
    const float q[] = {0.5f, 0.16666578f, 0.041666854f, 0.008363171f, 0.001390129f};
    return fma(r * r, polynomial(r, q), r);
}

// 2^n for integer n in [-126, 127]
DF_INLINE vf power_of_two(vf n) { return vf((vu(to_signed(n)) + splat_bits(127)) << 23); }

// p 2^n with one rounding, gradual underflow and overflow to infinity
DF_INLINE vf scale(vf p, vf n) {
#if defined(__AVX512F__)
    return _mm512_scalef_ps(p, n);
#else
    const vf half = from_signed(to_signed(n) >> 1);
    return p * power_of_two(half) * power_of_two(n - half);
#endif
}

DF_INLINE vf exp(vf x) {
    vf n;
    const vf clamped = max_keep_nan(splat(-105.0f), min_keep_nan(splat(90.0f), x));  // 0 and infinity beyond
    const vf p = exp_reduced(clamped, n);
    return scale(p + splat(1.0f), n);
}

// exp(x) - 1 for x <= 0:  2^n (exp(r) - 1) + (2^n - 1), exact sum of powers, no cancellation
DF_INLINE vf expm1_negative(vf x) {
    vf n;
    const vf p = exp_reduced(max_keep_nan(splat(-30.0f), x), n);
    const vf s = power_of_two(n);
    return fma(s, p, s - splat(1.0f));
}

// ln(1 + e) for e in [0, 1]:  2 atanh(s) with s = e / (2 + e) in [0, 1/3]   (1e-8)
DF_INLINE vf log1p_unit(vf e) {
    const vf s = e / (splat(2.0f) + e), y = s * s;
    const float c[] = {0.6666667f, 0.39999703f, 0.285925f, 0.21704535f, 0.23233548f};
    return fma(s * y, polynomial(y, c), s + s);
}

DF_INLINE vf within(float limit, vf x) { return max_keep_nan(splat(-limit), min_keep_nan(splat(limit), x)); }
// Natural logarithm: x = 2^e m, m in [sqrt(1/2), sqrt(2)), ln m = 2 atanh(s), s = (m - 1) / (m + 1)
DF_INLINE vf log(vf x) {
    const vf tiny = splat(0x1p-126f), one = splat(1.0f);
    const vi small = x < tiny;
    const vu bits = vu(select(small, x * splat(0x1p24f), x)) + splat_bits(0x3f800000u - 0x3f3504f3u);
    const vf e = from_signed(vi(bits >> 23) - 127) - select(small, splat(24.0f), splat(0.0f));
    const vf m = vf((bits & splat_bits(0x007fffffu)) + splat_bits(0x3f3504f3u));
    const vf s = (m - one) / (m + one), y = s * s;
    const float c[] = {0.6666667f, 0.39999703f, 0.285925f, 0.21704535f, 0.23233548f};
    // ln 2 in two parts, the first with few enough bits that e times it is exact
    const vf low = fma(e, splat(-2.12194440e-4f), fma(s * y, polynomial(y, c), s + s));
    vf r = fma(e, splat(0.693359375f), low);
    r = select(x == splat(__builtin_inff()), x, r);
    r = select(x == splat(0.0f), splat(-__builtin_inff()), r);
    return select(x >= splat(0.0f), r, splat(__builtin_nanf("")));
}

// sin(x + quarters pi/2). x = n pi/2 + r, |r| <= pi/4, pi/2 in three parts; beyond 2^20 n would have too few
// bits: NaN, which a sampler reports, rather than a wrong value.
DF_INLINE vf sine(vf x, int quarters) {
    const vf magic = splat(0x1.8p23f);
    const vf shifted = fma(x, splat(0.63661975f), magic), n = shifted - magic;
    vf r = fma(n, splat(-1.57079637f), x);
    r = fma(n, splat(4.37113883e-8f), r);
    r = fma(n, splat(1.71512489e-15f), r);
    const vf y = r * r;
    const float p[] = {-0.16666667f, 0.008333329f, -0.00019840764f, 2.7525562e-06f};
    const float q[] = {0.041666668f, -0.0013888889f, 2.480102e-05f, -2.7343832e-07f};
    const vf sin_r = fma(r * y, polynomial(y, p), r);
    const vf cos_r = fma(y * y, polynomial(y, q), fma(y, splat(-0.5f), splat(1.0f)));
    const vu quadrant = vu(shifted) + splat_bits(uint32_t(quarters));  // the low bits of the sum are n's
    const vf value = select(vi(quadrant & splat_bits(1)) != 0, cos_r, sin_r);
    const vf signed_value = vf(vu(value) ^ ((quadrant & splat_bits(2)) << 30));
    return select(abs(x) <= splat(0x1p20f), signed_value, splat(__builtin_nanf("")));
}

// log2 of a positive, finite x >= 2^-1022, in double
DF_INLINE double log2_of(double x) {
    uint64_t bits;
    memcpy(&bits, &x, 8);
    const int e =
        int((bits + 0x0009'5f61'9980'c434ull) >> 52) - 1023;  // so that m is in [sqrt(1/2), sqrt(2))
    bits -= uint64_t(int64_t(e)) << 52;
    double m;
    memcpy(&m, &bits, 8);
    const double s = (m - 1.0) / (m + 1.0), y = s * s;
    double series = 0.0;
    for (int k = 17; k >= 1; k -= 2) series = series * y + 1.0 / k;
    return double(e) + 2.0 * s * series * 1.4426950408889634;
}

// x^c by 2^(c log2 x) in double, rounded once. Rarely used, so one lane at a time.
DF_INLINE float power_of(float base, double c) {
    const double x = base < 0.0f ? -double(base) : double(base);
    const bool whole = c == double(int64_t(c)), odd = whole && (int64_t(c) & 1);
    if (c == 0.0) return 1.0f;
    if (base != base || (base < 0.0f && !whole && x < 3.5e38)) return __builtin_nanf("");
    const double sign = base < 0.0f && odd ? -1.0 : 1.0;
    if (x == 0.0) return c > 0.0 ? 0.0f : float(sign) * __builtin_inff();
    if (x > 3.5e38) return float(sign) * (c > 0.0 ? __builtin_inff() : 0.0f);
    double p = c * log2_of(x);
    p = p < -200.0 ? -200.0 : p > 200.0 ? 200.0 : p;
    const int64_t n = int64_t(p < 0.0 ? p - 0.5 : p + 0.5);
    const double f = (p - double(n)) * 0.6931471805599453;
    double power = 1.0;
    for (int k = 13; k >= 1; --k) power = 1.0 + power * f / k;
    const uint64_t scale_bits = uint64_t(n + 1023) << 52;
    double two_n;
    memcpy(&two_n, &scale_bits, 8);
    return float(sign * power * two_n);
}

// c^x = 2^(x log2 c) for c > 0, log2 c = high + low. exp of the rounded product x ln c would cost up to a
// hundred ulp; a fma leaves what the product has beyond a whole number without a rounding.
DF_INLINE vf exponential(vf x, float high, float low) {
    const vf magic = splat(0x1.8p23f);
    x = within(3e38f, x);  // infinity times a low of 0 is no number
    const vf n = max_keep_nan(splat(-160.0f), min_keep_nan(splat(135.0f), x * splat(high))) + magic - magic;
    vf r = within(1.0f, fma(x, splat(high), -n));  // beyond 1 only where the result is 0 or infinity
    r = r + within(1.0f, x * splat(low));
    vf whole;
    const vf p = exp_reduced(r * splat(0.6931472f), whole);
    return scale(p + splat(1.0f), n + whole);
}

}  // namespace df::DF_ISA
