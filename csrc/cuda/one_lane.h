// The vector types of cpu/simd.h with a single lane, for threads of a device: the functions of
// cpu/functions.h and the sums of cpu/groups.h are compiled from the same source as for the CPU, in namespace
// df::cuda, and give the same bits. Compile with -fmad=false: what is fused says so.
#pragma once
#define DF_ISA cuda
#include "../noise.h"

namespace df::cuda {

constexpr int W = 1;

struct vi;
struct vu;

struct vf {
    float v;
    vf() = default;
    DF_INLINE explicit vf(float value) : v(value) {}
    DF_INLINE explicit vf(vi bits);  // the same bits
    DF_INLINE explicit vf(vu bits);
    DF_INLINE float& operator[](int) { return v; }
    DF_INLINE float operator[](int) const { return v; }
};

struct vi {
    int32_t v;
    vi() = default;
    DF_INLINE explicit vi(int32_t value) : v(value) {}
    DF_INLINE explicit vi(vf bits) : v(int32_t(ScalarLanes::as_bits(bits.v))) {}
    DF_INLINE explicit vi(vu bits);
    DF_INLINE explicit operator bool() const { return v != 0; }
};

struct vu {
    uint32_t v;
    vu() = default;
    DF_INLINE explicit vu(uint32_t value) : v(value) {}
    DF_INLINE explicit vu(vf bits) : v(ScalarLanes::as_bits(bits.v)) {}
    DF_INLINE explicit vu(vi bits) : v(uint32_t(bits.v)) {}
};

DF_INLINE vf::vf(vi bits) : v(ScalarLanes::as_float(uint32_t(bits.v))) {}
DF_INLINE vf::vf(vu bits) : v(ScalarLanes::as_float(bits.v)) {}
DF_INLINE vi::vi(vu bits) : v(int32_t(bits.v)) {}

DF_INLINE vf operator+(vf a, vf b) { return vf(a.v + b.v); }
DF_INLINE vf operator-(vf a, vf b) { return vf(a.v - b.v); }
DF_INLINE vf operator*(vf a, vf b) { return vf(a.v * b.v); }
DF_INLINE vf operator/(vf a, vf b) { return vf(a.v / b.v); }
DF_INLINE vf operator-(vf a) { return vf(-a.v); }
DF_INLINE vf& operator+=(vf& a, vf b) { return a = a + b; }

// Comparisons give all bits or none, as those of vectors do.
DF_INLINE vi mask(bool b) { return vi(b ? -1 : 0); }
DF_INLINE vi operator<(vf a, vf b) { return mask(a.v < b.v); }
DF_INLINE vi operator>(vf a, vf b) { return mask(a.v > b.v); }
DF_INLINE vi operator<=(vf a, vf b) { return mask(a.v <= b.v); }
DF_INLINE vi operator>=(vf a, vf b) { return mask(a.v >= b.v); }
DF_INLINE vi operator==(vf a, vf b) { return mask(a.v == b.v); }
DF_INLINE vi operator<(vi a, vi b) { return mask(a.v < b.v); }
DF_INLINE vi operator<=(vi a, int32_t b) { return mask(a.v <= b); }
DF_INLINE vi operator!=(vi a, int32_t b) { return mask(a.v != b); }

DF_INLINE vi operator-(vi a, int32_t b) { return vi(a.v - b); }
DF_INLINE vi operator|(vi a, vi b) { return vi(a.v | b.v); }
DF_INLINE vi operator>>(vi a, int bits) { return vi(a.v >> bits); }
DF_INLINE vi& operator-=(vi& a, vi b) { return a = vi(a.v - b.v); }
DF_INLINE vu operator+(vu a, vu b) { return vu(a.v + b.v); }
DF_INLINE vu operator&(vu a, vu b) { return vu(a.v & b.v); }
DF_INLINE vu operator^(vu a, vu b) { return vu(a.v ^ b.v); }
DF_INLINE vu operator<<(vu a, int bits) { return vu(a.v << bits); }
DF_INLINE vu operator>>(vu a, int bits) { return vu(a.v >> bits); }

DF_INLINE vf splat(float a) { return vf(a); }
DF_INLINE vu splat_bits(uint32_t a) { return vu(a); }
DF_INLINE vf fma(vf a, vf b, vf c) { return vf(ScalarLanes::fma(a.v, b.v, c.v)); }
DF_INLINE vf sqrt(vf a) { return vf(ScalarLanes::sqrt(a.v)); }
DF_INLINE vf abs(vf a) { return vf(vu(a) & vu(0x7fffffffu)); }
DF_INLINE vf select(vi mask, vf a, vf b) { return mask.v ? a : b; }
// NaN in x comes back as NaN: a comparison with NaN is false, and the second operand is chosen.
DF_INLINE vf max_keep_nan(vf floor, vf x) { return vf(floor.v > x.v ? floor.v : x.v); }
DF_INLINE vf min_keep_nan(vf ceiling, vf x) { return vf(ceiling.v < x.v ? ceiling.v : x.v); }
DF_INLINE vf from_signed(vi a) { return vf(ScalarLanes::from_signed(a.v)); }
DF_INLINE vi to_signed(vf a) { return vi(int32_t(a.v)); }
DF_INLINE vf load(const float* p) { return vf(*p); }
DF_INLINE void store(float* p, vf v) { *p = v.v; }

}  // namespace df::cuda
