// 16-bit formats, and the operations of tensor cores: products are exact, sums are taken in double and
// rounded once, so that a test's tolerance covers how hardware rounds them.
#include <algorithm>
#include <cmath>
#include <limits>

#include "engine.h"

namespace emulator {
namespace {

constexpr int kRows = 16, kDepth = 16;  // of one warp's product

uint16_t bf16_from_float(uint32_t bits) { return uint16_t((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16); }

uint16_t f16_from_float(float value, uint32_t bits) {
    const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    if (magnitude >= 0x47800000u) return uint16_t(sign | 0x7C00u);  // 65536 and more: infinity
    if (magnitude < 0x38800000u)                                    // below 2^-14: multiples of 2^-24
        return uint16_t(sign | uint32_t(std::rint(std::fabs(value) * 0x1p24f)));
    const uint32_t rebiased = magnitude - (112u << 23);
    return uint16_t(sign | ((rebiased + 0xFFFu + (rebiased >> 13 & 1)) >> 13));
}

float f16_to_float(uint32_t bits) {
    const uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, mantissa = bits & 0x3FFu;
    if (exponent == 0) return std::copysign(float(mantissa) * 0x1p-24f, __uint_as_float(sign | 1));
    if (exponent == 31) return __uint_as_float(sign | 0x7F800000u | mantissa << 13);
    return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

// The two values of one fragment register.
void unpack(Half type, uint32_t bits, float* low, float* high) {
    *low = to_float(type, uint16_t(bits));
    *high = to_float(type, uint16_t(bits >> 16));
}

// Which row and first column of a 16 x 16 left operand lane's register r holds.
void put_left(Half type, unsigned lane, const uint32_t* a, float (*left)[kDepth]) {
    const unsigned group = lane / 4, column = lane % 4 * 2;
    for (unsigned r = 0; r < 4; ++r) {
        float* at = left[group + 8 * (r & 1)] + column + 8 * (r >> 1);
        unpack(type, a[r], at, at + 1);
    }
}

// f(row, column in 0 .. 7, which of the four values) for a lane's part of a 16 x 8 tile of accumulators
template <class F>
void for_accumulators(unsigned lane, const F& f) {
    for (unsigned r = 0; r < 4; ++r) f(lane / 4 + 8 * (r >> 1), lane % 4 * 2 + (r & 1), r);
}

float dot(const float* left, const float* right, size_t stride, float init) {
    double sum = 0.0;
    for (int k = 0; k < kDepth; ++k) sum += double(left[k]) * double(right[size_t(k) * stride]);
    return float(double(init) + sum);
}

struct Mma {
    float* c;
    const uint32_t* a;
    uint32_t b[2];
};

struct MatrixRow {
    const uint16_t* row;
    uint32_t* out;
};

}  // namespace

uint16_t from_float(Half type, float value) {
    if (std::isnan(value)) return 0x7FFF;  // the only NaN that cvt makes
    const uint32_t bits = __float_as_uint(value);
    return type == Half::kBf16 ? bf16_from_float(bits) : f16_from_float(value, bits);
}

float to_float(Half type, uint16_t bits) {
    return type == Half::kBf16 ? __uint_as_float(uint32_t(bits) << 16) : f16_to_float(bits);
}

namespace {

float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

}  // namespace

float exp2_flushed(float x) { return flush(std::exp2(flush(x))); }
float reciprocal_flushed(float x) { return flush(1.0f / flush(x)); }

void mma_m16n8k16(Half type, float* c, const uint32_t* a, uint32_t b0, uint32_t b1) {
    Mma mine{c, a, {b0, b1}};
    warp_operation({"mma.sync"}, ~0u, mine, [type](const auto& of) {
        float left[kRows][kDepth], right[kDepth][8];
        for (unsigned lane = 0; lane < kWarp; ++lane) {
            put_left(type, lane, of(lane).a, left);
            for (unsigned r = 0; r < 2; ++r) {
                const unsigned k = lane % 4 * 2 + 8 * r, n = lane / 4;
                unpack(type, of(lane).b[r], &right[k][n], &right[k + 1][n]);
            }
        }
        for (unsigned lane = 0; lane < kWarp; ++lane)
            for_accumulators(lane, [&](unsigned row, unsigned column, unsigned r) {
                of(lane).c[r] = dot(left[row], right[0] + column, 8, of(lane).c[r]);
            });
    });
}

void ldmatrix_x4(uint32_t* out, const void* row, bool transposed) {
    if (!block.shared.holds(row, 16)) fail("ldmatrix: a row outside dynamic shared memory");
    if (reinterpret_cast<uintptr_t>(row) % 16) fail("ldmatrix: a row that is no multiple of 16");
    sanitizer::reads(row, 16);
    MatrixRow mine{static_cast<const uint16_t*>(row), out};
    warp_operation({"ldmatrix"}, ~0u, mine, [transposed](const auto& of) {
        for (unsigned lane = 0; lane < kWarp; ++lane)
            for (unsigned matrix = 0; matrix < 4; ++matrix) {
                const auto value = [&](unsigned half) -> uint32_t {
                    const unsigned i = lane / 4, j = lane % 4 * 2 + half;
                    return transposed ? of(matrix * 8 + j).row[i] : of(matrix * 8 + i).row[j];
                };
                of(lane).out[matrix] = value(0) | value(1) << 16;
            }
    });
}

// ---- wgmma

namespace {

// f(8-column block n, 8-deep block k, its 128 bytes) for each core matrix of a right operand without swizzle
template <class F>
void for_core_matrices(const Product& p, const F& f) {
    const auto field = [&p](int shift) { return uint32_t(p.descriptor >> shift & 0x3FFF) << 4; };
    const uint32_t address = field(0), leading = field(16), stride = field(32);
    for (int n = 0; n < p.n / 8; ++n)
        for (int k = 0; k < kDepth / 8; ++k)
            f(n, k, shared_pointer(address + uint32_t(n) * stride + uint32_t(k) * leading, 128));
}

// Every thread of the warpgroup reads all of the right operand, as far as races are concerned.
void check_right(const Product& p) {
    for_core_matrices(p, [](int, int, const unsigned char* core) {
        sanitizer::reads(core, 128);
        const auto* unfenced = block.shared.unfenced.data() + (core - block.shared.begin) / 16;
        if (std::any_of(unfenced, unfenced + 8, [](uint16_t threads) { return threads != 0; }))
            fail("wgmma: reads what cp.async wrote and no fence.proxy.async made visible");
    });
}

// The 16 x n right operand: element (n, k) of a core matrix is row n, or row k where transposed.
std::vector<float> right_operand(const Product& p) {
    std::vector<float> right(size_t(kDepth * p.n));
    for_core_matrices(p, [&](int n8, int k8, const unsigned char* core) {
        const auto* values = reinterpret_cast<const uint16_t*>(core);
        for (int n = 0; n < 8; ++n)
            for (int k = 0; k < 8; ++k)
                right[size_t((k8 * 8 + k) * p.n + n8 * 8 + n)] =
                    to_float(p.type, values[p.transposed ? k * 8 + n : n * 8 + k]);
    });
    return right;
}

Accumulators& accumulators(Fiber& fiber, const float* d) {
    return *std::find_if(fiber.accumulators.begin(), fiber.accumulators.end(),
                         [d](const Accumulators& a) { return a.d == d; });
}

// of(lane): its fiber; all have the same products under way
template <class Of>
void multiply(const Of& of, size_t index) {
    const auto product = [&](unsigned lane) -> const Product& {
        return of(lane).products.committed.front()[index];
    };
    const Product& p = product(0);
    const std::vector<float> right = right_operand(p);
    float left[kRows][kDepth];
    for (unsigned lane = 0; lane < kWarp; ++lane) put_left(p.type, lane, product(lane).a, left);
    for (unsigned lane = 0; lane < kWarp; ++lane) {
        Accumulators& to = accumulators(of(lane), product(lane).d);
        for (unsigned tile = 0; tile < unsigned(p.n) / 8; ++tile)
            for_accumulators(lane, [&](unsigned row, unsigned column, unsigned r) {
                float& value = to.value[4 * tile + r];
                value = dot(left[row], right.data() + 8 * tile + column, size_t(p.n),
                            p.accumulate ? value : 0.0f);
            });
        if (--to.under_way == 0) std::copy(to.value.begin(), to.value.end(), to.d);
    }
}

// The four warps start a product together, and must agree on it.
void meet_warpgroup(const Product& p) {
    Warpgroup& group = block.warpgroups[running->linear / kWarpgroup];
    const Product& first = group.first;
    if (block.threads % kWarpgroup) fail("wgmma: the block is not made of whole warpgroups");
    if (group.arrived == 0)
        group.first = p;
    else if (first.type != p.type || first.n != p.n || first.transposed != p.transposed ||
             first.accumulate != p.accumulate || first.descriptor != p.descriptor)
        fail("wgmma: operands differ within the warpgroup");
    if (++group.arrived == kWarpgroup) {
        group.arrived = 0;
        ++group.generation;
    } else {
        suspend(&group.generation, {"wgmma"});
    }
}

}  // namespace

void wgmma(Half type, int n, bool transposed, float* d, const uint32_t* a, uint64_t descriptor,
           bool accumulate) {
    const Product p{type, n, transposed, accumulate, descriptor, {a[0], a[1], a[2], a[3]}, d};
    if (n < 8 || n > 256 || n % 8) fail("wgmma: accepted: n = 8, 16 .. 256");
    if (descriptor >> 46) fail("wgmma: only descriptors without swizzle and base offset are emulated");
    Fiber& me = *running;
    meet_warpgroup(p);
    check_right(p);
    const bool continues = std::any_of(me.accumulators.begin(), me.accumulators.end(),
                                       [d](const Accumulators& a) { return a.d == d; });
    if (!continues) {
        if (!me.registers_fenced) fail("wgmma: no wgmma.fence before the first product");
        me.accumulators.push_back({d, std::vector<float>(d, d + n / 2), 0});
        std::fill(d, d + n / 2, std::numeric_limits<float>::quiet_NaN());
    }
    Accumulators& to = accumulators(me, d);
    if (to.value.size() != size_t(n / 2)) fail("wgmma: the accumulators of a product of another shape");
    ++to.under_way;
    me.products.open.push_back(p);
}

void wgmma_fence() { running->registers_fenced = true; }

void wgmma_commit() { running->products.commit(); }

void wgmma_wait(int left) {
    Fiber& me = *running;
    auto& groups = me.products.committed;
    for (; groups.size() > size_t(left); groups.pop_front()) {
        for (const Product& p : groups.front()) check_right(p);
        warp_operation({"wgmma.wait_group"}, ~0u, me, [](const auto& of) {
            const size_t products = of(0).products.committed.front().size();
            for (unsigned lane = 1; lane < kWarp; ++lane)
                if (of(lane).products.committed.front().size() != products)
                    fail("wgmma.wait_group: lanes have issued different products");
            for (size_t i = 0; i < products; ++i) multiply(of, i);
        });
        me.accumulators.erase(std::remove_if(me.accumulators.begin(), me.accumulators.end(),
                                             [](const Accumulators& a) { return a.under_way == 0; }),
                              me.accumulators.end());
    }
    me.registers_fenced = false;
}

}  // namespace emulator
