// The chain kernels of diffusion_fast._cuda. Pointers arrive as integers, already checked by the Python
// layer; what can be checked here without reading device memory is checked again.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "bind_checks.h"
#include "cuda/chain.h"

namespace py = pybind11;

namespace df {
namespace {

using cuda::ChainArgs;
using cuda::Program;

template <class T>
T* device_pointer(uintptr_t address, const char* what) {
    require(address % alignof(T) == 0, what);
    return reinterpret_cast<T*>(address);
}

Plan plan_from(const py::bytes& bytes) {
    char* data = nullptr;
    py::ssize_t size = 0;
    if (PyBytes_AsStringAndSize(bytes.ptr(), &data, &size) != 0) throw py::error_already_set();
    return parse_plan(reinterpret_cast<const uint8_t*>(data), size_t(size));
}

// The image as an array that keeps the program alive: the caller copies it to the device.
py::array_t<uint32_t> image(const py::object& self) {
    const auto& words = self.cast<const Program&>().image();
    py::array_t<uint32_t> array({words.size()}, {sizeof(uint32_t)}, words.data(), self);
    array.attr("flags").attr("writeable") = false;
    return array;
}

void check_options(const ChainArgs& a, const cuda::ProgramView& p) {
    require(!a.guidance || p.branches == 2, "guidance: the plan has one branch");
    require((a.context != nullptr) == (p.n_context > 0), "context: given without need, or needed");
    require(a.context_stride == 0 || a.context_stride == p.n_context, "context: a stride of 0 or n_context");
    require((a.fixed != nullptr) == (a.fixed_mask != nullptr), "fixed: mask and values go together");
    require(a.fixed_stride == 0 || a.fixed_stride == p.dim, "fixed: a stride of 0 or dim");
    require(!a.labels || p.n_classes > 0, "labels: the plan has no classes");
    require(a.labels || p.n_classes == 0 || (a.label >= 0 && a.label < p.n_classes), "labels: out of range");
}

void run(const Program& program, uintptr_t image, uintptr_t scratch, uintptr_t out, int64_t n, uint64_t start,
         uint64_t seed, uintptr_t stream, int device, uintptr_t x_T, uintptr_t noise, uintptr_t trajectory,
         uintptr_t labels, int32_t label, uintptr_t guidance, uintptr_t context, int64_t context_stride,
         uintptr_t fixed_mask, uintptr_t fixed, int64_t fixed_stride, bool fixed_clean, uintptr_t device_seed,
         int64_t max_blocks) {
    check_range(n, program.view().dim, start);
    require(max_blocks >= 0, "max_blocks: accepted: 0 (no limit) or more");
    if (n == 0) return;
    ChainArgs args{};
    require(image != 0 && image % 16 == 0, "image: a null or misaligned pointer");
    args.image = device_pointer<const uint32_t>(image, "image: misaligned");
    require((scratch != 0) == (program.scratch_bytes(n) > 0), "scratch: given without need, or needed");
    args.scratch = device_pointer<float>(scratch, "scratch: misaligned");
    require(out != 0, "out: a null pointer");
    args.out = device_pointer<float>(out, "out: misaligned");
    args.x_T = device_pointer<const float>(x_T, "x_T: misaligned");
    args.noise = device_pointer<const float>(noise, "noise: misaligned");
    args.trajectory = device_pointer<float>(trajectory, "trajectory: misaligned");
    args.labels = device_pointer<const int32_t>(labels, "labels: misaligned");
    args.label = label;
    args.guidance = device_pointer<const float>(guidance, "guidance: misaligned");
    args.context = device_pointer<const float>(context, "context: misaligned");
    args.context_stride = context_stride;
    args.fixed_mask = device_pointer<const uint8_t>(fixed_mask, "fixed_mask: misaligned");
    args.fixed = device_pointer<const float>(fixed, "fixed: misaligned");
    args.fixed_stride = fixed_stride;
    args.fixed_clean = fixed_clean;
    args.n = n;
    args.start = start;
    args.keys = RoundKeys(seed);
    args.device_seed = device_pointer<const uint64_t>(device_seed, "device_seed: misaligned");
    check_options(args, program.view());
    const py::gil_scoped_release release;
    run_chain(program, args, max_blocks, device, reinterpret_cast<void*>(stream));
}

}  // namespace

void bind_chain(py::module_& m) {
    // Local: the tests load a second module of these kernels, with bugs.
    py::class_<Program>(m, "Program", py::module_local(), "A validated plan, packed for a device; immutable.")
        .def(py::init([](const py::bytes& plan, const std::string& precision, int64_t shared_bytes,
                         int capability, int multiprocessors, bool tensor_cores) {
                 require(shared_bytes >= 0 && multiprocessors >= 1, "device: limits out of range");
                 return std::make_unique<Program>(
                     plan_from(plan), cuda::precision_named(precision),
                     cuda::DeviceLimits{shared_bytes, capability, multiprocessors}, tensor_cores);
             }),
             py::arg("plan"), py::arg("precision"), py::arg("shared_bytes"), py::arg("capability"),
             py::arg("multiprocessors"), py::arg("tensor_cores") = true)
        .def_property_readonly("path",
                               [](const Program& program) {
                                   constexpr const char* kNames[] = {"general", "mma", "wgmma", "wide"};
                                   return kNames[int(program.path())];
                               })
        .def_property_readonly("reason", &Program::reason)
        .def_property_readonly("image", &image)
        .def("scratch_bytes", &Program::scratch_bytes, py::arg("n"))
        .def(
            "prepare", [](const Program& program, int device) { prepare_chain(program, device); },
            py::arg("device"))
        .def("run", &run, py::arg("image"), py::arg("scratch"), py::arg("out"), py::arg("n"),
             py::arg("start"), py::arg("seed"), py::arg("stream"), py::arg("device"), py::arg("x_T") = 0,
             py::arg("noise") = 0, py::arg("trajectory") = 0, py::arg("labels") = 0, py::arg("label") = 0,
             py::arg("guidance") = 0, py::arg("context") = 0, py::arg("context_stride") = 0,
             py::arg("fixed_mask") = 0, py::arg("fixed") = 0, py::arg("fixed_stride") = 0,
             py::arg("fixed_clean") = false, py::arg("device_seed") = 0, py::arg("max_blocks") = 0);
}

}  // namespace df
