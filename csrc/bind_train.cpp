// diffusion_fast._cpu.Trainer: a small network in training. Pointers arrive as integers, checked by the
// Python layer (fused_training.py); what can be checked here is checked again.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bind_checks.h"
#include "bind_poll.h"
#include "cpu/trainer.h"

namespace py = pybind11;

namespace df {
namespace {

using namespace df::cpu;

// (n_in, n_out, bias, function, param)
using LayerTuple = std::tuple<int, int, bool, uint32_t, float>;
// (layers, table_rows, table_trained)
using ChainTuple = std::tuple<std::vector<LayerTuple>, int, bool>;

std::unique_ptr<Trainer> make(const std::vector<ChainTuple>& chains, bool decoupled, double weight_decay,
                              double max_norm, double average, const std::string& isa) {
    std::vector<ChainSpec> specs;
    for (const auto& [layers, table_rows, trained] : chains) {
        specs.push_back({{}, table_rows, trained});
        for (const auto& [n_in, n_out, bias, function, param] : layers)
            specs.back().layers.push_back({n_in, n_out, bias, Function(function), param});
    }
    require(weight_decay >= 0.0 && max_norm >= 0.0 && average >= 0.0 && average < 1.0,
            "options: out of range");
    const Kernels& chosen = isa.empty() ? kernels() : kernels_named(isa.c_str());
    return std::make_unique<Trainer>(chosen, std::move(specs),
                                     TrainerOptions{decoupled, weight_decay, max_norm, average});
}

template <class T>
std::vector<T*> pointers(const std::vector<uintptr_t>& addresses) {
    std::vector<T*> found;
    for (const uintptr_t address : addresses) {
        require(address != 0, "parameters: a null pointer");
        found.push_back(reinterpret_cast<T*>(address));
    }
    return found;
}

int64_t run(Trainer& trainer, uintptr_t x, uintptr_t target, const std::vector<uintptr_t>& indices,
            int64_t rows, int64_t batch, uintptr_t rates, uintptr_t losses, int threads,
            py::object progress) {
    require(rows >= 0 && x != 0 && target != 0 && rates != 0 && losses != 0, "rows: null pointers");
    const TrainCall call{rows,
                         batch,
                         reinterpret_cast<const float*>(x),
                         reinterpret_cast<const float*>(target),
                         pointers<const int64_t>(indices),
                         reinterpret_cast<const double*>(rates),
                         reinterpret_cast<float*>(losses)};
    check_threads(threads);
    PythonPoll poll{std::move(progress), nullptr};
    int64_t done;
    {
        const py::gil_scoped_release release;
        done = trainer.run(call, threads, {&PythonPoll::poll, &poll});
    }
    if (poll.error) std::rethrow_exception(poll.error);
    return done;
}

}  // namespace

void bind_train(py::module_& m) {
    py::class_<Trainer>(m, "Trainer", "A small network in training; one call at a time.")
        .def(py::init(&make), py::arg("chains"), py::arg("decoupled"), py::arg("weight_decay"),
             py::arg("max_norm"), py::arg("average"), py::arg("isa") = "")
        .def("load", [](Trainer& t, const std::vector<uintptr_t>& p) { t.load(pointers<const float>(p)); })
        .def("store", [](Trainer& t, const std::vector<uintptr_t>& p,
                         bool average) { t.store(pointers<float>(p), average); })
        .def("run", &run, py::arg("x"), py::arg("target"), py::arg("indices"), py::arg("rows"),
             py::arg("batch"), py::arg("rates"), py::arg("losses"), py::arg("threads"),
             py::arg("progress") = py::none());
}

}  // namespace df
