// diffusion_fast._cpu.reverse_step and small_step: one row of a step table on the caller's tensors.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "bind_step_args.h"
#include "bind_tensor.h"
#include "cpu/run.h"

namespace py = pybind11;

namespace df {
namespace {

using namespace df::cpu;

void reverse_step(const py::bytes& row, uint32_t terms, uint32_t dtype, const py::tuple& tensors, float scale,
                  int64_t n, int64_t dim, uint64_t start, uint64_t seed, uint32_t step, int threads) {
    const StepArgs a = step_args(row, terms, dtype, tensors, scale, n, dim, start, seed, step);
    check_threads(threads);
    const py::gil_scoped_release release;
    run_step(kernels(), a, threads);
}

// ---- the usual call on a small tensor, where asking Python about its arguments takes longer than the step

constexpr int64_t kSmall = 1 << 16;  // elements that are never worth a second thread

// The tensors of a call, in the order in which they are asked for.
struct UsualCall {
    PlainTensor x{}, read[4]{}, history[3]{}, prediction{}, out{};
    int n_read = 0, n_history = 0;
    bool pushes = false, predicts = false;

    // A tensor that is read, as its address; null for None. False: unusual.
    bool reads(PyObject* object, const void*& at) {
        at = nullptr;
        if (object == Py_None) return true;
        PlainTensor& t = read[n_read];
        if (!plain_tensor(object, t) || !t.like(x)) return false;
        ++n_read;
        at = t.data;
        return true;
    }

    bool keeps(PyObject* list, void* at[3]) {
        if (!PyTuple_Check(list) && !PyList_Check(list)) return false;
        const Py_ssize_t count = PySequence_Fast_GET_SIZE(list);
        if (count > 3) return false;
        for (; n_history < count; ++n_history) {
            PlainTensor& t = history[n_history];
            if (!plain_tensor(PySequence_Fast_GET_ITEM(list, n_history), t) || !t.like(x)) return false;
            at[n_history] = t.data;
        }
        return true;
    }

    // out may be the very memory of what is read; a history that is written and the prediction are theirs
    // alone.
    bool apart() const {
        const auto same_or_apart = [this](const PlainTensor& t) {
            return t.data == out.data || !t.overlaps(out);
        };
        if (!same_or_apart(x) || !std::all_of(read, read + n_read, same_or_apart)) return false;
        for (int i = 0; i < n_history; ++i) {
            const auto overlaps = [this, i](const PlainTensor& t) { return history[i].overlaps(t); };
            if (overlaps(out)) return false;
            if (pushes && (overlaps(x) || std::any_of(read, read + n_read, overlaps) ||
                           std::any_of(history, history + i, overlaps)))
                return false;
        }
        const auto predicted = [this](const PlainTensor& t) { return prediction.overlaps(t); };
        return !predicts || !(predicted(x) || predicted(out) || std::any_of(read, read + n_read, predicted) ||
                              std::any_of(history, history + n_history, predicted));
    }
};

// An int in [0, most]; false: unusual.
bool small_integer(PyObject* object, uint64_t most, uint64_t& value) {
    if (!PyLong_CheckExact(object)) return false;
    value = PyLong_AsUnsignedLongLong(object);
    if (value == ~uint64_t(0) && PyErr_Occurred()) {
        PyErr_Clear();
        return false;
    }
    return value <= most;
}

// small_step(row, terms, x, model_output, uncond_output, guidance_scale, history, log_variance, noise,
// prediction, out, seed, step, start), as ops.reverse_step means them: the result; or None, and nothing done,
// where one of them is not in its usual form, valid or not. With prediction=True that is a new tensor, and
// the result both.
PyObject* small_step(PyObject*, PyObject* const* given, Py_ssize_t count) {
    enum {
        kRow,
        kTerms,
        kX,
        kF,
        kU,
        kScale,
        kHistory,
        kVariance,
        kNoise,
        kPrediction,
        kOut,
        kSeed,
        kStep,
        kStart,
        kCount
    };
    if (count != kCount || !PyBytes_CheckExact(given[kRow]) || !PyLong_CheckExact(given[kTerms]) ||
        PyBytes_GET_SIZE(given[kRow]) != sizeof(StepRow)) {
        PyErr_SetString(PyExc_TypeError, "small_step: takes a row, its terms and 12 more arguments");
        return nullptr;
    }
    StepArgs a{};
    std::memcpy(&a.row, PyBytes_AS_STRING(given[kRow]), sizeof(StepRow));
    a.terms = uint32_t(PyLong_AsUnsignedLongLongMask(given[kTerms]));
    if (a.row.rescale != 0.0f || a.row.quantile != 0.0f) Py_RETURN_NONE;

    UsualCall t;
    if (!plain_tensor(given[kX], t.x) || t.x.numel == 0 || t.x.numel >= kSmall) Py_RETURN_NONE;
    if (!t.reads(given[kF], a.model_output) || !t.reads(given[kU], a.uncond_output) ||
        !t.reads(given[kVariance], a.log_variance) || !t.reads(given[kNoise], a.noise) ||
        !t.keeps(given[kHistory], a.history))
        Py_RETURN_NONE;
    const bool evaluates = a.row.flags & kEval;
    if (evaluates != (a.model_output != nullptr) || (a.uncond_output && !evaluates)) Py_RETURN_NONE;
    for (int i = 0; i < 3; ++i)
        if (!a.history[i] && (a.terms & kHistoryTerms[i])) Py_RETURN_NONE;
    if (a.uncond_output) {
        if (!PyFloat_CheckExact(given[kScale])) Py_RETURN_NONE;
        a.guidance_scale = float(PyFloat_AS_DOUBLE(given[kScale]));
        if (!std::isfinite(a.guidance_scale)) Py_RETURN_NONE;
    } else if (given[kScale] != Py_None || (evaluates && a.row.guidance != 1.0f)) {
        Py_RETURN_NONE;
    }
    uint64_t step = 0;
    const uint64_t n = uint64_t(t.x.shape[0]);
    const bool drawn = given[kSeed] != Py_None;
    if (drawn ? a.noise || !small_integer(given[kSeed], ~uint64_t(0), a.seed) : !a.noise && a.row.s != 0.0f)
        Py_RETURN_NONE;
    if (!small_integer(given[kStep], (1u << 28) - 1, step) ||
        !small_integer(given[kStart], kMaxSamples - n, a.start))
        Py_RETURN_NONE;
    t.pushes = a.row.flags & kPush;
    t.predicts = given[kPrediction] != Py_None;
    const auto new_or = [&](PyObject* object, PyObject* absent, PlainTensor& view) {
        if (object == absent) return py::reinterpret_steal<py::object>(empty_like(given[kX], view));
        if (!plain_tensor(object, view)) view.data = nullptr;
        return py::reinterpret_borrow<py::object>(object);
    };
    const py::object prediction = new_or(given[kPrediction], Py_True, t.prediction);
    const py::object out = new_or(given[kOut], Py_None, t.out);
    if (!prediction || !out) return nullptr;
    if (t.predicts && !(t.prediction.data && t.prediction.like(t.x))) Py_RETURN_NONE;
    if (!t.out.data || !t.out.like(t.x) || !t.apart()) Py_RETURN_NONE;
    a.dtype = t.x.dtype;
    a.x = t.x.data;
    a.out = t.out.data;
    a.prediction = t.prediction.data;
    a.n = t.x.shape[0];
    a.dim = t.x.numel / a.n;
    a.step = uint32_t(step);
    try {
        const py::gil_scoped_release release;
        run_step(kernels(), a, 1);
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
    return given[kPrediction] == Py_True ? PyTuple_Pack(2, out.ptr(), prediction.ptr())
                                         : Py_NewRef(out.ptr());
}

PyMethodDef kMethods[] = {
    {"small_step", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(small_step)), METH_FASTCALL,
     nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

void bind_step(py::module_& m) {
    m.def("reverse_step", &reverse_step);
    if (PyModule_AddFunctions(m.ptr(), kMethods) != 0) throw py::error_already_set();
}

}  // namespace df
