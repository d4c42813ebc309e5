// Python bindings of schedule.h: float64 and int64 NumPy arrays in and out; std::invalid_argument arrives in
// Python as ValueError.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "schedule.h"

namespace py = pybind11;

namespace {

using DoubleArray = py::array_t<double, py::array::c_style | py::array::forcecast>;

std::vector<double> to_vector(const DoubleArray& array, const char* name) {
    if (array.ndim() != 1) throw std::invalid_argument(std::string(name) + ": accepted: a 1-D array");
    return std::vector<double>(array.data(), array.data() + array.size());
}

template <class T>
py::array_t<T> to_array(const std::vector<T>& values) {
    return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

}  // namespace

void bind_schedule(py::module_& m) {
    m.def(
        "schedule_betas",
        [](const std::string& name, std::int64_t n_steps, const std::map<std::string, double>& params) {
            return to_array(df::schedule_betas(name, n_steps, params));
        },
        py::arg("name"), py::arg("n_steps"), py::arg("params"),
        "Betas of a named schedule, float64 (n_steps,).");
    m.def(
        "alphas_cumprod",
        [](const DoubleArray& betas) { return to_array(df::alphas_cumprod(to_vector(betas, "betas"))); },
        py::arg("betas"), "Running product of 1 - beta, float64 (T,).");
    m.def(
        "log_snr",
        [](const DoubleArray& abar) { return to_array(df::log_snr(to_vector(abar, "alphas_cumprod"))); },
        py::arg("alphas_cumprod"), "log(abar / (1 - abar)), float64 (T,).");
    m.def(
        "zero_terminal_snr",
        [](const DoubleArray& betas) { return to_array(df::zero_terminal_snr(to_vector(betas, "betas"))); },
        py::arg("betas"), "Betas rescaled so that the last alphas_cumprod is 0, float64 (T,).");
    m.def(
        "spaced_timesteps",
        [](const std::string& name, std::int64_t n_train, std::int64_t steps) {
            return to_array(df::spaced_timesteps(name, n_train, steps));
        },
        py::arg("name"), py::arg("n_train"), py::arg("steps"), "Timesteps in running order, int64 (steps,).");
}
