// Functions of single features on vectors, within a few ulp of the exact one for every float (envelope:
// tests/test_activations.py, tests/test_functions.py).
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

// tanh(x) = the result / denominator:  x P(x^2) / Q(x^2) on |x| <= 9.02, where it is 1 to the last bit
// (2.1e-8)
DF_INLINE vf tanh_numerator(vf x, vf& denominator) {
    const vf limit = splat(9.02f);
    const vf v = max_keep_nan(-limit, min_keep_nan(limit, x)), y = v * v;
    const float p[] = {1.0f, 0.13379753f, 0.0034940755f, 2.0584115e-05f, 1.3319869e-08f};
    const float q[] = {1.0f, 0.4671307f, 0.02587123f, 0.0003283158f, 7.762363e-07f};
    denominator = polynomial(y, q);
    return v * polynomial(y, p);
}

DF_INLINE vf tanh(vf x) {
    vf q;
    const vf p = tanh_numerator(x, q);
    return max_keep_nan(splat(-1.0f), min_keep_nan(splat(1.0f), p / q));
}

DF_INLINE vf sigmoid(vf x) { return splat(1.0f) / (splat(1.0f) + exp(-x)); }
DF_INLINE vf silu(vf x) { return x / (splat(1.0f) + exp(-x)); }

// Phi(x), and e = exp(-a^2/2) for a = min(|x|, 14.6). With the tail q = Phi(-a) = e g(a), g rational (6e-9):
// q for x < 0, 1 - q else, so the far negative side keeps its relative accuracy (1 + erf would cancel).
DF_INLINE vf normal_cdf(vf x, vf a, vf& e) {
    const float p[] = {0.5f, 0.43848953f, 0.18337913f, 0.040681727f, 0.0041234973f};
    const float q[] = {1.0f, 1.674864f, 1.2031016f, 0.46985075f, 0.10198034f, 0.010335957f};
    // a^2/2 = h + l exactly, exp(-(h + l)) = exp(-h) (1 - l)
    const vf half = splat(0.5f) * a, h = a * half, l = fma(a, half, -h);
    e = exp(-h);
    e = fma(-l, e, e);
    const vf tail = e * (polynomial(a, p) / polynomial(a, q));
    return select(x < splat(0.0f), tail, splat(1.0f) - tail);
}

DF_INLINE vf gelu(vf x) {
    vf e;
    return x * normal_cdf(x, min_keep_nan(splat(14.6f), abs(x)), e);
}

// exp(-2 u), u = sqrt(2/pi) (v + 0.044715 v^3) for |v| <= 12, with the argument carried as w + w_err: it
// reaches 100, where one rounding of it would cost exp a hundred ulp.
DF_INLINE vf gelu_tanh_exp(vf v) {
    const vf c1 = splat(-1.5957692f), c1_err = splat(4.534068e-08f);      // -2 sqrt(2/pi)
    const vf c2 = splat(-0.071354814f), c2_err = splat(-2.3988325e-09f);  // times 0.044715
    const vf t = v * v, t_err = fma(v, v, -t);
    const vf p = c2 * t, p_err = fma(c2, t, -p) + fma(c2, t_err, c2_err * t);
    const vf s = p + c1, c1_part = s - p, s_err = (p - (s - c1_part)) + (c1 - c1_part);  // two-sum
    const vf w = v * s, w_err = fma(v, s, -w) + v * (s_err + (p_err + c1_err));
    return exp(w) * (splat(1.0f) + w_err);
}

DF_INLINE vf within(float limit, vf x) { return max_keep_nan(splat(-limit), min_keep_nan(splat(limit), x)); }
DF_INLINE vf gelu_tanh(vf x) { return x / (splat(1.0f) + gelu_tanh_exp(within(12.0f, x))); }

DF_INLINE vf softplus(vf x) { return max_keep_nan(splat(0.0f), x) + log1p_unit(exp(-abs(x))); }

// x tanh(softplus(x)) = x n / (n + 2), n = e (e + 2), e = exp(x); for x > 0 multiplied through by exp(-2x)
DF_INLINE vf mish(vf x) {
    const vf u = exp(-abs(x));
    const vf down = u * (u + splat(2.0f)), up = fma(splat(2.0f), u, splat(1.0f));
    const vf n = select(x > splat(0.0f), up, down);
    const vf rest = select(x > splat(0.0f), splat(2.0f) * u * u, splat(2.0f));
    return x * (n / (n + rest));
}

// ---- derivatives of the activations

DF_INLINE vf relu_slope(vf x) { return select(x <= splat(0.0f), splat(0.0f), splat(1.0f)); }
DF_INLINE vf leaky_relu_slope(vf x, vf slope) { return select(x > splat(0.0f), splat(1.0f), slope); }
DF_INLINE vf elu_slope(vf x, vf alpha) { return select(x > splat(0.0f), splat(1.0f), alpha * exp(x)); }

// e / (1 + e)^2, e = exp(-|x|)
DF_INLINE vf sigmoid_slope(vf x) {
    const vf e = exp(-abs(x)), d = splat(1.0f) + e;
    return e / (d * d);
}

// 1 - tanh(x)^2 is four times the sigmoid's at 2 x
DF_INLINE vf tanh_slope(vf x) { return splat(4.0f) * sigmoid_slope(x + x); }

// s + x s (1 - s) du, s = 1 / (1 + e), of whose complement e s and 1 - s keep their digits on one side each
DF_INLINE vf sigmoid_unit_slope(vf x, vf e, vf du) {
    const vf s = splat(1.0f) / (splat(1.0f) + e);
    return fma(x * s * select(x > splat(0.0f), e * s, splat(1.0f) - s), du, s);
}
DF_INLINE vf silu_slope(vf x) { return sigmoid_unit_slope(x, exp(-x), splat(1.0f)); }

// Phi(x) + x phi(x)
DF_INLINE vf gelu_slope(vf x) {
    vf e;
    const vf a = min_keep_nan(splat(14.6f), abs(x)), cdf = normal_cdf(x, a, e);
    return fma(select(x < splat(0.0f), -a, a) * splat(0.3989423f), e, cdf);
}

// du = 2 u': see gelu_tanh_exp
DF_INLINE vf gelu_tanh_slope(vf x) {
    const vf v = within(12.0f, x);
    return sigmoid_unit_slope(v, gelu_tanh_exp(v), fma(v * v, splat(0.21406445f), splat(1.5957692f)));
}

// t + x sigmoid(x) (1 - t^2), t = tanh(softplus(x)) = n / d, d = n + 2: see mish. The second term is
// 4 x e (1 + e) / d^2.
DF_INLINE vf mish_slope(vf x) {
    const vf u = exp(-abs(x)), one = splat(1.0f);
    const vf n = select(x > splat(0.0f), fma(splat(2.0f), u, one), u * (u + splat(2.0f)));
    const vf d = n + select(x > splat(0.0f), splat(2.0f) * u * u, splat(2.0f));
    const vf p = u * (one + u) * select(x > splat(0.0f), u, one);
    return (n + splat(4.0f) * within(128.0f, x) * p / d) / d;
}

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

// x^c by 2^(c log2 x) in double, rounded once. Rarely used, so one lane at a time.
DF_INLINE float power_of(float base, double c) {
    const double x = base < 0.0f ? -double(base) : double(base);
    const bool whole = c == double(int64_t(c)), odd = whole && (int64_t(c) & 1);
    if (c == 0.0) return 1.0f;
    if (base != base || (base < 0.0f && !whole && x < 3.5e38)) return __builtin_nanf("");
    const double sign = base < 0.0f && odd ? -1.0 : 1.0;
    if (x == 0.0) return c > 0.0 ? 0.0f : float(sign) * __builtin_inff();
    if (x > 3.5e38) return float(sign) * (c > 0.0 ? __builtin_inff() : 0.0f);
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
    const double log2x = double(e) + 2.0 * s * series * 1.4426950408889634;
    double p = c * log2x;
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

// use(f), f being the function on a vector
template <class Use>
DF_INLINE void with_function(Function function, float param, Use use) {
    const vf zero = splat(0.0f), k = splat(param);
    switch (function) {
        case Function::kRelu:
            return use([=](vf v) { return max_keep_nan(zero, v); });
        case Function::kLeakyRelu:
            return use([=](vf v) { return select(v > zero, v, v * k); });
        case Function::kElu:
            return use([=](vf v) { return select(v > zero, v, k * expm1_negative(v)); });
        case Function::kTanh:
            return use([](vf v) { return tanh(v); });
        case Function::kSigmoid:
            return use([](vf v) { return sigmoid(v); });
        case Function::kSilu:
            return use([](vf v) { return silu(v); });
        case Function::kGelu:
            return use([](vf v) { return gelu(v); });
        case Function::kGeluTanh:
            return use([](vf v) { return gelu_tanh(v); });
        case Function::kSoftplus:
            return use([](vf v) { return softplus(v); });
        case Function::kMish:
            return use([](vf v) { return mish(v); });
        case Function::kSin:
            return use([](vf v) { return sine(v, 0); });
        case Function::kCos:
            return use([](vf v) { return sine(v, 1); });
        case Function::kExp:
            return use([](vf v) { return exp(v); });
        case Function::kLog:
            return use([](vf v) { return log(v); });
        case Function::kSqrt:
            return use([](vf v) { return sqrt(v); });
        case Function::kAbs:
            return use([](vf v) { return abs(v); });
        case Function::kReciprocal:
            return use([](vf v) { return splat(1.0f) / v; });
        case Function::kPow:
            return use([=](vf v) {
                for (int i = 0; i < W; ++i) v[i] = power_of(v[i], param);
                return v;
            });
        case Function::kClampMin:
            return use([=](vf v) { return max_keep_nan(k, v); });
        case Function::kClampMax:
            return use([=](vf v) { return min_keep_nan(k, v); });
        case Function::kAddConst:
            return use([=](vf v) { return v + k; });
        case Function::kMulConst:
            return use([=](vf v) { return v * k; });
        case Function::kReluSlope:
            return use([](vf v) { return relu_slope(v); });
        case Function::kLeakyReluSlope:
            return use([=](vf v) { return leaky_relu_slope(v, k); });
        case Function::kEluSlope:
            return use([=](vf v) { return elu_slope(v, k); });
        case Function::kTanhSlope:
            return use([](vf v) { return tanh_slope(v); });
        case Function::kSigmoidSlope:
            return use([](vf v) { return sigmoid_slope(v); });
        case Function::kSiluSlope:
            return use([](vf v) { return silu_slope(v); });
        case Function::kGeluSlope:
            return use([](vf v) { return gelu_slope(v); });
        case Function::kGeluTanhSlope:
            return use([](vf v) { return gelu_tanh_slope(v); });
        case Function::kMishSlope:
            return use([](vf v) { return mish_slope(v); });
        case Function::kIdentity:
        case Function::kCount:
            return use([](vf v) { return v; });
    }
}

// N vectors side by side. A function is one long chain of dependent operations; three of them in flight take
// 0.65 of the time of one after the other (silu, AVX2), given a compiler that mixes them (-fschedule-insns).
constexpr int kAbreast = 3;
template <int N, class F>
DF_INLINE void map_vectors(F f, const float* x, float* y) {
    vf v[N];
#pragma GCC unroll 3
    for (int k = 0; k < N; ++k) v[k] = f(load(x + k * W));
#pragma GCC unroll 3
    for (int k = 0; k < N; ++k) store(y + k * W, v[k]);
}

// y[i] = f(x[i]), y may be x; a call handles a whole block, so the branch costs nothing. count: a multiple
// of W
[[maybe_unused]] static void apply(Function function, float param, const float* x, float* y, int count) {
    if (function == Function::kIdentity && x == y) return;
    with_function(function, param, [=](auto f) {
        int i = 0;
        for (; i + kAbreast * W <= count; i += kAbreast * W) map_vectors<kAbreast>(f, x + i, y + i);
        for (; i < count; i += W) map_vectors<1>(f, x + i, y + i);
    });
}

DF_INLINE Function slope_of(Function activation) {
    switch (activation) {
        case Function::kRelu:
            return Function::kReluSlope;
        case Function::kLeakyRelu:
            return Function::kLeakyReluSlope;
        case Function::kElu:
            return Function::kEluSlope;
        case Function::kTanh:
            return Function::kTanhSlope;
        case Function::kSigmoid:
            return Function::kSigmoidSlope;
        case Function::kSilu:
            return Function::kSiluSlope;
        case Function::kGelu:
            return Function::kGeluSlope;
        case Function::kGeluTanh:
            return Function::kGeluTanhSlope;
        case Function::kSoftplus:
            return Function::kSigmoid;
        case Function::kMish:
            return Function::kMishSlope;
        default:
            return Function::kCount;  // has none
    }
}

template <int N, class F, class G>
DF_INLINE void map_vectors(F f, G f_slope, const float* x, float* y, float* slope) {
    vf v[N], d[N];
#pragma GCC unroll 3
    for (int k = 0; k < N; ++k) v[k] = load(x + k * W);
#pragma GCC unroll 3
    for (int k = 0; k < N; ++k) d[k] = f_slope(v[k]);
#pragma GCC unroll 3
    for (int k = 0; k < N; ++k) {
        store(y + k * W, f(v[k]));
        store(slope + k * W, d[k]);
    }
}

// y[i] = f(x[i]) and slope[i] = f'(x[i]), with the bits of the two apart; what they have in common, exp above
// all, is computed once. y may be x; slope lies apart.
[[maybe_unused]] static void apply_with_slope(Function function, float param, const float* x, float* y,
                                              float* slope, int count) {
    const auto both = [=](auto f, auto f_slope) {
        int i = 0;
        for (; i + kAbreast * W <= count; i += kAbreast * W)
            map_vectors<kAbreast>(f, f_slope, x + i, y + i, slope + i);
        for (; i < count; i += W) map_vectors<1>(f, f_slope, x + i, y + i, slope + i);
    };
    switch (function) {
        case Function::kSilu:
            return both([](vf v) { return silu(v); }, [](vf v) { return silu_slope(v); });
        case Function::kGelu:
            return both([](vf v) { return gelu(v); }, [](vf v) { return gelu_slope(v); });
        case Function::kGeluTanh:
            return both([](vf v) { return gelu_tanh(v); }, [](vf v) { return gelu_tanh_slope(v); });
        case Function::kMish:
            return both([](vf v) { return mish(v); }, [](vf v) { return mish_slope(v); });
        case Function::kIdentity:
            return both([](vf v) { return v; }, [](vf) { return splat(1.0f); });
        default:  // the slope first: x may be gone after
            apply(slope_of(function), param, x, slope, count);
            apply(function, param, x, y, count);
    }
}

}  // namespace df::DF_ISA
