// diffusion_fast._cuda: a thin door. Pointers to device memory arrive as integers, already checked by the
// Python layer, which also says on which device and stream to work; what can be checked here is checked
// again.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bind_step_args.h"
#include "cuda/api.h"

namespace py = pybind11;

namespace df {
void bind_chain(py::module_& m);
}

namespace {

using namespace df;
using namespace df::cuda;

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

Replay replay(uintptr_t seed, uintptr_t step) {
    return {pointer<const uint64_t>(seed), pointer<const int64_t>(step)};
}

void reverse_step(const py::bytes& row, uint32_t terms, uint32_t dtype, const py::tuple& tensors, float scale,
                  int64_t n, int64_t dim, uint64_t start, uint64_t seed, uint32_t step, uintptr_t seed_at,
                  uintptr_t step_at, uintptr_t factor, uintptr_t threshold, int device, uintptr_t stream) {
    const StepArgs a = step_args(row, terms, dtype, tensors, scale, n, dim, start, seed, step);
    const py::gil_scoped_release release;
    run_step(a, pointer<float>(factor), pointer<float>(threshold), replay(seed_at, step_at),
             {device, pointer<void>(stream)});
}

void normal(uintptr_t out, int64_t n, int64_t dim, uint64_t start, uint64_t seed, uint32_t step,
            uint32_t purpose, uint32_t substream, uintptr_t seed_at, uintptr_t step_at, int device,
            uintptr_t stream) {
    const NoiseArgs a = noise_args(out, n, dim, start, seed, step, purpose, substream);
    const py::gil_scoped_release release;
    run_noise(a, replay(seed_at, step_at), {device, pointer<void>(stream)});
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "CUDA kernels of diffusion_fast. Called by the checked Python layer only.";
    m.def("probe", [] {
        const Probe p = probe();
        return py::make_tuple(p.driver, p.runtime, p.devices, p.code, p.message);
    });
    m.def("architectures", &architectures);
    m.def("prepare", &prepare, py::call_guard<py::gil_scoped_release>());
    m.def("reverse_step", &reverse_step);
    m.def("normal", &normal);
    bind_chain(m);
}
