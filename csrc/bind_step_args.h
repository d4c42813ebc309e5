// The arguments of reverse_step and normal as they arrive from Python, for _cpu and for _cuda.
#pragma once
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#include "bind_checks.h"
#include "step_args.h"

namespace df {

constexpr uint32_t kHistoryTerms[] = {kTermC1, kTermC2, kTermC3};

// tensors: the addresses of out, x, model_output, uncond_output, guidance_scales, h1, h2, h3, log_variance,
// noise and prediction, 0 where absent; scale: one for all samples where guidance_scales is 0. A tuple, for a
// long list of arguments takes longer than a small step.
inline StepArgs step_args(const pybind11::bytes& row, uint32_t terms, uint32_t dtype,
                          const pybind11::tuple& tensors, float scale, int64_t n, int64_t dim, uint64_t start,
                          uint64_t seed, uint32_t step) {
    StepArgs a{};
    require(PyBytes_GET_SIZE(row.ptr()) == sizeof(StepRow), "row: not 80 bytes");
    std::memcpy(&a.row, PyBytes_AS_STRING(row.ptr()), sizeof(StepRow));
    check_range(n, dim, start);
    require(dtype <= uint32_t(Dtype::kFloat16), "dtype: unknown");
    require(step < (1u << 28), "step: accepted: below 2^28");
    void* at[11];
    require(tensors.size() == std::size(at), "tensors: not 11 addresses");
    for (size_t i = 0; i < std::size(at); ++i) {
        at[i] = PyLong_AsVoidPtr(PyTuple_GET_ITEM(tensors.ptr(), pybind11::ssize_t(i)));
        if (!at[i] && PyErr_Occurred()) throw pybind11::error_already_set();
    }
    a.terms = terms;
    a.dtype = Dtype(dtype);
    a.out = at[0];
    a.x = at[1];
    a.model_output = at[2];
    a.uncond_output = at[3];
    a.guidance_scale = scale;
    a.guidance_scales = static_cast<const float*>(at[4]);
    std::copy_n(at + 5, 3, a.history);
    a.log_variance = at[8];
    a.noise = at[9];
    a.prediction = at[10];
    require(n == 0 || (a.out && a.x), "x: a null pointer");
    require(!a.uncond_output || a.model_output, "uncond_output: needs model_output");
    for (int i = 0; i < 3; ++i)
        require(a.history[i] || !(terms & kHistoryTerms[i]), "history: the row needs more tensors");
    a.n = n;
    a.dim = dim;
    a.start = start;
    a.seed = seed;
    a.step = step;
    return a;
}

inline NoiseArgs noise_args(uintptr_t out, int64_t n, int64_t dim, uint64_t start, uint64_t seed,
                            uint32_t step, uint32_t purpose, uint32_t substream) {
    check_range(n, dim, start);
    require(out != 0 || n == 0, "out: a null pointer");
    require(step < (1u << 28) && purpose < 16 && substream < (1u << 16),
            "step, purpose or substream out of range");
    return {reinterpret_cast<float*>(out), n, dim, start, seed, step, Purpose(purpose), substream};
}

}  // namespace df
