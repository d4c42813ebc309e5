// Picks the instruction set at run time: the best this processor has, or the one DIFFUSION_FAST_ISA names.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace df::cpu {

namespace portable {
extern const Kernels table;
}
#if defined(DF_HAVE_AVX2)
namespace avx2 {
extern const Kernels table;
}
#endif
#if defined(DF_HAVE_AVX512)
namespace avx512 {
extern const Kernels table;
}
#endif
#if defined(DF_HAVE_AVX512_BF16)
namespace avx512_bf16 {
extern const Kernels table;
}
#endif

int usable_isas(const Kernels* out[kMostIsas]) {
    int count = 0;
#if defined(DF_HAVE_AVX512)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("fma")) {
#if defined(DF_HAVE_AVX512_BF16)
        if (__builtin_cpu_supports("avx512bf16")) out[count++] = &avx512_bf16::table;
#endif
        out[count++] = &avx512::table;
    }
#endif
#if defined(DF_HAVE_AVX2)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) out[count++] = &avx2::table;
#endif
    out[count++] = &portable::table;
    return count;
}

const Kernels& kernels_named(const char* name) {
    const Kernels* usable[kMostIsas];
    const int count = usable_isas(usable);
    std::string names;
    for (int i = 0; i < count; ++i) {
        if (std::strcmp(usable[i]->name, name) == 0) return *usable[i];
        names += (i ? ", " : "") + std::string(usable[i]->name);
    }
    throw std::invalid_argument("isa: got '" + std::string(name) + "'; accepted on this processor: " + names);
}

const Kernels& kernels() {
    static const Kernels& chosen = [&]() -> const Kernels& {
        const char* forced = std::getenv("DIFFUSION_FAST_ISA");
        if (forced && *forced) try {
                return kernels_named(forced);
            } catch (const std::invalid_argument& error) {
                throw std::invalid_argument(std::string("DIFFUSION_FAST_ISA: ") + error.what());
            }
        const Kernels* usable[kMostIsas];
        usable_isas(usable);
        return *usable[0];
    }();
    return chosen;
}

}  // namespace df::cpu
