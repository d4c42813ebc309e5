// diffusion_fast._cpu: a thin door. Pointers arrive as integers, already checked by the Python layer; what
// can be checked here without knowing the tensors (the plan, ranges, labels, sizes) is checked again.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "bind_poll.h"
#include "bind_step_args.h"
#include "cpu/run.h"

namespace py = pybind11;

void bind_schedule(py::module_& m);
namespace df {
void bind_step(py::module_& m);
void bind_tensor(py::module_& m);
void bind_train(py::module_& m);
}  // namespace df

namespace {

using namespace df;
using namespace df::cpu;

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

const Kernels& chosen(const std::string& isa) { return isa.empty() ? kernels() : kernels_named(isa.c_str()); }

Plan plan_from(const py::bytes& bytes) {
    char* data = nullptr;
    py::ssize_t size = 0;
    if (PyBytes_AsStringAndSize(bytes.ptr(), &data, &size) != 0) throw py::error_already_set();
    return parse_plan(reinterpret_cast<const uint8_t*>(data), size_t(size));
}

py::tuple run(const Program& program, uintptr_t out, int64_t n, uint64_t start, uint64_t seed, int threads,
              uintptr_t x_T, uintptr_t noise, uintptr_t trajectory, uintptr_t labels, int32_t label,
              uintptr_t guidance, uintptr_t context, int64_t context_stride, uintptr_t fixed_mask,
              uintptr_t fixed, int64_t fixed_stride, bool fixed_clean, py::object progress) {
    ChainArgs args{};
    const ProgramView view = program.view();
    check_range(n, view.dim, start);
    require(out != 0 || n == 0, "out: a null pointer");
    args.out = pointer<float>(out);
    args.x_T = pointer<const float>(x_T);
    args.noise = pointer<const float>(noise);
    args.trajectory = pointer<float>(trajectory);
    args.labels = pointer<const int32_t>(labels);
    args.label = label;
    args.guidance = pointer<const float>(guidance);
    require(!args.guidance || view.branches == 2, "guidance: the plan has one branch");
    args.context = pointer<const float>(context);
    args.context_stride = context_stride;
    require(n == 0 || (context != 0) == (view.n_context > 0), "context: given without need, or needed");
    require(context_stride == 0 || context_stride == view.n_context, "context: a stride of 0 or n_context");
    args.fixed_mask = pointer<const uint8_t>(fixed_mask);
    args.fixed = pointer<const float>(fixed);
    args.fixed_stride = fixed_stride;
    args.fixed_clean = fixed_clean;
    require((fixed != 0) == (fixed_mask != 0), "fixed: mask and values go together");
    require(fixed_stride == 0 || fixed_stride == view.dim, "fixed: a stride of 0 or dim");
    args.n = n;
    args.start = start;
    args.seed = seed;
    if (view.n_classes == 0) {
        require(!args.labels, "labels: the plan has no classes");
    } else {
        require(args.labels || (label >= 0 && label < view.n_classes), "labels: out of range");
        for (int64_t i = 0; args.labels && i < n; ++i)
            require(args.labels[i] >= 0 && args.labels[i] < view.n_classes, "labels: out of range");
    }
    check_threads(threads);
    PythonPoll poll{std::move(progress), nullptr};
    ChainReport report;
    {
        const py::gil_scoped_release release;
        report = run_chain(program, args, threads, {&PythonPoll::poll, &poll});
    }
    if (poll.error) std::rethrow_exception(poll.error);
    return py::make_tuple(report.bad_rows, report.first_bad);
}

void normal(uintptr_t out, int64_t n, int64_t dim, uint64_t start, uint64_t seed, uint32_t step,
            uint32_t purpose, uint32_t substream, int threads, const std::string& isa) {
    const NoiseArgs a = noise_args(out, n, dim, start, seed, step, purpose, substream);
    const Kernels& k = chosen(isa);
    check_threads(threads);
    const py::gil_scoped_release release;
    run_noise(k, a, threads);
}

py::array_t<float> activate(uint32_t code, float param, const py::array_t<float, py::array::c_style>& x,
                            const std::string& isa) {
    require(code < uint32_t(Function::kCount), "code: unknown function");
    const auto size = int64_t(x.size());
    std::vector<float> padded(size_t(size + 15) / 16 * 16, 0.0f);
    std::copy_n(x.data(), size, padded.data());
    chosen(isa).apply(Function(code), param, padded.data(), int64_t(padded.size()));
    return py::array_t<float>(size, padded.data());
}

py::list isas() {
    const Kernels* usable[3];
    py::list names;
    const int count = usable_isas(usable);
    for (int i = 0; i < count; ++i) names.append(usable[i]->name);
    return names;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "CPU kernels of diffusion_fast. Called by the checked Python layer only.";
    bind_schedule(m);
    bind_step(m);
    bind_tensor(m);
    bind_train(m);
    py::class_<Program>(m, "Program", "A validated plan, packed for one instruction set; immutable.")
        .def(py::init([](const py::bytes& plan, const std::string& isa) {
                 return std::make_unique<Program>(plan_from(plan), chosen(isa));
             }),
             py::arg("plan"), py::arg("isa") = "")
        .def_property_readonly("isa", [](const Program& p) { return p.kernels().name; })
        .def_property_readonly("work_per_step", &Program::work_per_step)
        .def("run", &run, py::arg("out"), py::arg("n"), py::arg("start"), py::arg("seed"), py::arg("threads"),
             py::arg("x_T") = 0, py::arg("noise") = 0, py::arg("trajectory") = 0, py::arg("labels") = 0,
             py::arg("label") = 0, py::arg("guidance") = 0, py::arg("context") = 0,
             py::arg("context_stride") = 0, py::arg("fixed_mask") = 0, py::arg("fixed") = 0,
             py::arg("fixed_stride") = 0, py::arg("fixed_clean") = false, py::arg("progress") = py::none());
    m.def("validate_plan", [](const py::bytes& plan) { plan_from(plan); });
    m.def("normal", &normal, py::arg("out"), py::arg("n"), py::arg("dim"), py::arg("start"), py::arg("seed"),
          py::arg("step"), py::arg("purpose"), py::arg("substream"), py::arg("threads"), py::arg("isa") = "");
    m.def("activate", &activate, py::arg("code"), py::arg("param"), py::arg("x"), py::arg("isa") = "");
    m.def("philox", [](std::array<uint32_t, 4> counter, uint32_t k0, uint32_t k1) {
        philox4x32_10<ScalarLanes>(counter.data(), RoundKeys(uint64_t(k1) << 32 | k0));
        return counter;
    });
    m.def("box_muller", [](uint32_t a, uint32_t b) {
        float z0, z1;
        box_muller<ScalarLanes>(a, b, z0, z1);
        return std::make_pair(z0, z1);
    });
    m.def("isa", [] { return kernels().name; });
    m.def("isas", &isas);
    m.def(
        "fma_peak",
        [](const std::string& isa, int threads, double seconds) {
            const Kernels& k = chosen(isa);
            check_threads(threads);
            const py::gil_scoped_release release;
            return fma_peak(k, threads, seconds);
        },
        py::arg("isa") = "", py::arg("threads") = 1, py::arg("seconds") = 0.5);
}
