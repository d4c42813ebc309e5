// Compiled once per instruction set, with -DDF_ISA=avx512_bf16 | avx512 | avx2 | portable and the matching
// machine flags.
#if defined(__GNUC__) && !defined(__clang__)
// Independent chains of operations are mixed before registers are assigned, mindful of how many there are: an
// activation of three vectors takes 0.8 of the time (AVX2).
#pragma GCC optimize("schedule-insns", "sched-pressure")
#endif
#include "kernels.h"

#include "step.h"
#include "train_step.h"

namespace df::DF_ISA {

static void apply_all(Function function, float param, float* y, int64_t count) {
    for (int64_t i = 0; i < count; i += 1 << 20)
        apply(function, param, y + i, y + i, int(count - i < (1 << 20) ? count - i : 1 << 20));
}

// Hides a value from the optimiser without moving it, so that every fma of a burst is run.
DF_INLINE void keep_in_register(vf& v) {
#if defined(__x86_64__)
    asm volatile("" : "+x"(v));
#elif defined(__aarch64__)
    asm volatile("" : "+w"(v));
#else
    asm volatile("" : "+m"(v));
#endif
}

// The products of a layer on registers only, in N independent chains: the ceiling the kernels are measured
// against. Every loop over acc is unrolled, or the array would live in memory and the ceiling be a third of
// the truth. A pair counts as two.
template <class P, int N>
static double burst(int64_t iterations) {
    vf acc[N];
#pragma GCC unroll 12
    for (int i = 0; i < N; ++i) acc[i] = splat(float(i));
    const auto a = P::all(typename P::T(0)), b = P::all(typename P::T(0));
    for (int64_t k = 0; k < iterations; ++k) {
#pragma GCC unroll 12
        for (int i = 0; i < N; ++i) {
            acc[i] = P::add(acc[i], a, b);
            keep_in_register(acc[i]);
        }
    }
    vf sum = splat(0.0f);
#pragma GCC unroll 12
    for (int i = 0; i < N; ++i) sum += acc[i];
    volatile float keep = sum[0];
    (void)keep;
    return double(iterations) * N * W * (P::terms(2) == 1 ? 2 : 1);
}

template <class P>
static double burst_of(int64_t iterations, int chains) {
    return chains == 8    ? burst<P, 8>(iterations)
           : chains == 10 ? burst<P, 10>(iterations)
                          : burst<P, 12>(iterations);
}

static double product_burst(bool pairs, int64_t iterations, int chains) {
    return (pairs ? burst_of<Bfloat16Products> : burst_of<Float32Products>)(iterations, chains);
}

}  // namespace df::DF_ISA

#define DF_STRING_(x) #x
#define DF_STRING(x) DF_STRING_(x)

namespace df::cpu {
namespace DF_ISA {
extern const Kernels table;
const Kernels table = {
    DF_STRING(DF_ISA),
    df::DF_ISA::W,
    df::DF_ISA::kHasBfloat16,
    {df::DF_ISA::Usual::kBlock, df::DF_ISA::Usual::kVectors * df::DF_ISA::W},
    {df::DF_ISA::Wide::kBlock, df::DF_ISA::Wide::kVectors * df::DF_ISA::W},
    df::DF_ISA::chain_scratch_floats,
    df::DF_ISA::chain,
    df::DF_ISA::network_at,
    df::DF_ISA::lookup,
    df::DF_ISA::step,
    df::DF_ISA::step_statistics,
    df::DF_ISA::noise,
    df::DF_ISA::apply_all,
    df::DF_ISA::product_burst,
    {df::DF_ISA::kPanel, df::DF_ISA::condition_forward, df::DF_ISA::trunk, df::DF_ISA::condition_backward,
     df::DF_ISA::gradient, df::DF_ISA::gradient_square, df::DF_ISA::row_square, df::DF_ISA::update,
     df::DF_ISA::update_rows, df::DF_ISA::settle},
};
}  // namespace DF_ISA
}  // namespace df::cpu
