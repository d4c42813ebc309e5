// diffusion_fast._cpu: a thin door. Pointers arrive as integers, already checked by the Python layer; what
// can be checked here without knowing the tensors (the plan, ranges, labels, sizes) is checked again.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>

#include "bind_poll.h"
#include "bind_step_args.h"
#include "cpu/run.h"
#include "cpu/tables.h"

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
              uintptr_t fixed, int64_t fixed_stride, bool fixed_clean, py::object progress,
              const Tables* tables) {
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
    TablesView on_grids{};
    if (tables) {
        require(tables->dim() == view.dim && tables->n_classes() == view.n_classes && view.n_context == 0,
                "tables: of another plan");
        require(tables->n_rows() == view.n_rows, "tables: of another plan");
        require(!args.guidance, "guidance: the tables hold the rows' own");
        on_grids = tables->view();
        for (int i = 0; i < view.n_rows; ++i)
            require(!(view.rows[i].flags & kEval) || on_grids.of_row[i] >= 0, "tables: a row has none");
        args.tables = &on_grids;
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

// Arrays as Tables keeps them; they are not copied, and must not be written to.
template <class T>
using Contiguous = py::array_t<T, py::array::c_style>;

std::unique_ptr<Tables> make_tables(int dim, int n_classes, const Contiguous<int32_t>& of_row,
                                    const Contiguous<float>& scale, const Contiguous<float>& shift,
                                    const Contiguous<int32_t>& cells, const Contiguous<float>& values) {
    require(dim >= 1 && scale.ndim() == 2 && scale.shape(1) == dim, "scale: not (n_grids, dim)");
    require(shift.size() == scale.size() && cells.size() == scale.size(), "shift, cells: not as scale");
    return std::make_unique<Tables>(
        dim, n_classes, std::vector<int32_t>(of_row.data(), of_row.data() + of_row.size()), scale.data(),
        shift.data(), cells.data(), int64_t(scale.shape(0)), values.data(), int64_t(values.size()));
}

// Values of `count` grids of `cells` (dim) from the function at their nodes: (count, nodes) to (count, floats
// of a grid).
void fit_grids(const Contiguous<int32_t>& cells, uintptr_t nodes, uintptr_t values, int64_t count) {
    const int dim = int(cells.size());
    require(dim == 1 || dim == 2, "cells: accepted: 1 or 2 of them");
    int64_t from = dim, to = dim == 1 ? 4 : 2;
    for (int j = 0; j < dim; ++j) {
        require(cells.data()[j] >= 1 && cells.data()[j] <= 1 << 20, "cells: accepted: 1 to 2^20");
        from *= cells.data()[j] + 1 + 2 * kFitMargin;
        to *= dim == 1 ? cells.data()[j] : cells.data()[j] + 3;
    }
    const int32_t* sizes = cells.data();
    PythonPoll poll{py::none(), nullptr};
    {
        const py::gil_scoped_release release;
        for (int64_t i = 0; i < count && !poll.error; ++i)
            fit(dim, sizes, pointer<const float>(nodes) + i * from, pointer<float>(values) + i * to,
                [&poll] { return poll.check(0); });
    }
    if (poll.error) std::rethrow_exception(poll.error);
}

// The guided network of each of `rows` at k points of its own, x (rows, k, dim) to out; one label for all.
void network(const Program& program, const Contiguous<int32_t>& rows, uintptr_t x, uintptr_t out, int64_t k,
             int32_t label, int threads) {
    const ProgramView view = program.view();
    ChainArgs args{};
    args.n = k;
    args.label = label;
    check_range(k, view.dim, 0);
    require(view.n_context == 0, "context: the plan has one");
    require(view.n_classes == 0 || (label >= 0 && label < view.n_classes), "labels: out of range");
    check_threads(threads);
    for (py::ssize_t i = 0; i < rows.size(); ++i) {
        const int32_t row = rows.data()[i];
        require(row >= 0 && row < view.n_rows && (view.rows[row].flags & kEval),
                "rows: one is not evaluated");
    }
    PythonPoll poll{py::none(), nullptr};
    {
        const py::gil_scoped_release release;
        for (py::ssize_t i = 0; i < rows.size() && poll.check(0); ++i) {
            args.x_T = pointer<const float>(x) + i * k * view.dim;
            args.out = pointer<float>(out) + i * k * view.dim;
            run_network(program, args, rows.data()[i], threads, {&PythonPoll::poll, &poll});
            if (poll.error) break;
        }
    }
    if (poll.error) std::rethrow_exception(poll.error);
}

// The tables of `grids` at k points each, x (grids, k, dim) to out; NaN beside the grid. One label for all.
void lookup(const Tables& tables, const Contiguous<int32_t>& grids, uintptr_t x, uintptr_t out, int64_t k,
            int32_t label, const std::string& isa) {
    const Kernels& kernels = chosen(isa);
    const TablesView view = tables.view();
    const int dim = tables.dim(), S = int((k + kernels.lanes - 1) / kernels.lanes) * kernels.lanes;
    require(k >= 0 && k <= 1 << 24, "k: accepted: up to 2^24");
    require(label >= 0 && label < std::max(tables.n_classes(), 1), "labels: out of range");
    for (py::ssize_t i = 0; i < grids.size(); ++i)
        require(grids.data()[i] >= 0 && grids.data()[i] < tables.n_grids(), "grids: one does not exist");
    const py::gil_scoped_release release;
    std::vector<float> points(size_t(2) * S), found(size_t(2) * S);
    std::vector<int32_t> outside(static_cast<size_t>(S));
    for (py::ssize_t i = 0; i < grids.size(); ++i) {
        const float* from = pointer<const float>(x) + i * k * dim;
        float* to = pointer<float>(out) + i * k * dim;
        for (int64_t l = 0; l < k; ++l)
            for (int j = 0; j < dim; ++j) points[size_t(j * S + l)] = from[l * dim + j];
        const int n = kernels.lookup({&view.grids[grids.data()[i]], view.values, nullptr, label,
                                      points.data(), found.data(), outside.data(), dim, S, int(k)});
        for (int j = 0; j < dim; ++j) {
            for (int l = 0; l < n; ++l) found[size_t(j * S + outside[size_t(l)])] = std::nanf("");
            for (int64_t l = 0; l < k; ++l) to[l * dim + j] = found[size_t(j * S + l)];
        }
    }
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
    const Kernels* usable[kMostIsas];
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
    py::class_<Tables>(m, "Tables", "Grids of a plan's rows; the values stay the caller's array.")
        .def(py::init(&make_tables), py::arg("dim"), py::arg("n_classes"), py::arg("of_row"),
             py::arg("scale"), py::arg("shift"), py::arg("cells"), py::arg("values").noconvert(),
             py::keep_alive<1, 8>())
        .def_property_readonly("block", [](const Tables& t) { return t.view().block; })
        .def("lookup", &lookup, py::arg("grids"), py::arg("x"), py::arg("out"), py::arg("k"),
             py::arg("label") = 0, py::arg("isa") = "");
    m.attr("FIT_MARGIN") = kFitMargin;
    m.attr("LOOKUP_WORK") = py::make_tuple(kLookupWork[0], kLookupWork[1]);
    m.def("fit", &fit_grids, py::arg("cells"), py::arg("nodes"), py::arg("values"), py::arg("count"));
    py::class_<Program>(m, "Program", "A validated plan, packed for one instruction set; immutable.")
        .def(py::init([](const py::bytes& plan, const std::string& isa, int low_rows, bool emulated) {
                 const Kernels& kernels = chosen(isa);
                 if (low_rows < 0 || (low_rows && !emulated && !kernels.bfloat16))
                     throw py::value_error("low_rows: takes a processor with AVX-512 BF16");
                 return std::make_unique<Program>(plan_from(plan), kernels, low_rows);
             }),
             py::arg("plan"), py::arg("isa") = "", py::arg("low_rows") = 0, py::arg("emulated") = false)
        .def_property_readonly("has_pairs", &Program::has_pairs)
        .def_property_readonly("isa", [](const Program& p) { return p.kernels().name; })
        .def_property_readonly("work_per_step", &Program::work_per_step)
        .def("run", &run, py::arg("out"), py::arg("n"), py::arg("start"), py::arg("seed"), py::arg("threads"),
             py::arg("x_T") = 0, py::arg("noise") = 0, py::arg("trajectory") = 0, py::arg("labels") = 0,
             py::arg("label") = 0, py::arg("guidance") = 0, py::arg("context") = 0,
             py::arg("context_stride") = 0, py::arg("fixed_mask") = 0, py::arg("fixed") = 0,
             py::arg("fixed_stride") = 0, py::arg("fixed_clean") = false, py::arg("progress") = py::none(),
             py::arg("tables") = nullptr)
        .def("network", &network, py::arg("rows"), py::arg("x"), py::arg("out"), py::arg("k"),
             py::arg("label"), py::arg("threads"));
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
    m.attr("without_cuda") = DF_WITHOUT_CUDA;  // why the build left CUDA out, "" where it did not
    m.def("isa", [] { return kernels().name; });
    m.def("isas", &isas);
    m.def("has_bfloat16", [] { return kernels().bfloat16; });
    m.def(
        "fma_peak",
        [](const std::string& isa, int threads, double seconds, bool pairs) {
            const Kernels& k = chosen(isa);
            check_threads(threads);
            const py::gil_scoped_release release;
            return product_peak(k, pairs, threads, seconds);
        },
        py::arg("isa") = "", py::arg("threads") = 1, py::arg("seconds") = 0.5, py::arg("pairs") = false);
}
