// What every entry point of _cpu checks again, though the Python layer has.
#pragma once
#include <cstdint>
#include <stdexcept>

namespace df {

inline void require(bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(what);
}

constexpr uint64_t kMaxSamples = uint64_t(1) << 48;  // 48 bits of the Philox counter

// n >= 0 samples of dim elements from index start: below 2^48 samples, and countable in 64 bits
inline void check_range(int64_t n, int64_t dim, uint64_t start) {
    require(n >= 0 && uint64_t(n) <= kMaxSamples && start <= kMaxSamples - uint64_t(n),
            "n: start + n exceeds 2^48");
    require(dim <= int64_t(1) << 32, "dim: exceeds 2^32");  // quads are counted in 32 bits
    require(dim >= 1 && (n == 0 || dim <= (int64_t(1) << 60) / n), "dim: n * dim does not fit");
}

inline int check_threads(int threads) {
    require(threads >= 1 && threads <= 4096, "threads: accepted: 1 to 4096");
    return threads;
}

}  // namespace df
