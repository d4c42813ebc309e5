// The floating-point control register while a kernel runs.
#pragma once
#include <cstdint>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace df::cpu {

// Round to nearest with gradual underflow, or with what is below 2^-126 taken for zero: flush-to-zero is per
// thread and would change bits.
class FloatingPointState {
#if defined(__SSE__)
    unsigned saved_ = _mm_getcsr();

  public:
    explicit FloatingPointState(bool flush = false) { _mm_setcsr(flush ? 0x9fc0 : 0x1f80); }
    ~FloatingPointState() { _mm_setcsr(saved_); }
#elif defined(__aarch64__)
    uint64_t saved_;

  public:
    explicit FloatingPointState(bool flush = false) {
        asm volatile("mrs %0, fpcr" : "=r"(saved_));
        asm volatile("msr fpcr, %0" ::"r"(flush ? uint64_t(1) << 24 : uint64_t(0)));
    }
    ~FloatingPointState() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }
#else
  public:
    explicit FloatingPointState(bool = false) {}
#endif
};

}  // namespace df::cpu
