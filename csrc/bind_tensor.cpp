// diffusion_fast._cpu: what is asked of torch's tensors at each call, and the memory of new ones.
#include "bind_tensor.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "blocks.h"

namespace py = pybind11;

namespace df {
namespace {

// Set once by the Python layer; never released, as the module is not either.
struct Torch {
    PyObject *tensor_type, *empty_like, *is_neg, *requires_grad, *version;
    const dlpack::ExchangeApi* api;
} torch_{};

bool view_of(PyObject* object, dlpack::Tensor& view) {
    if (torch_.api && torch_.api->view(object, &view) == 0) return true;
    PyErr_Clear();
    return false;
}

bool is_false(PyObject* value) {  // takes the reference
    if (!value) PyErr_Clear();
    Py_XDECREF(value);  // True and False live for ever
    return value == Py_False;
}

bool contiguous(const dlpack::Tensor& t) {
    int64_t expected = 1;
    for (int i = t.ndim - 1; i >= 0 && t.strides; --i) {
        if (t.shape[i] != 1 && t.strides[i] != expected) return false;
        expected *= t.shape[i];
    }
    return true;
}

// Whether the object is a dense, contiguous torch.Tensor on the CPU; false where that is not known.
bool dense(PyObject* object, PlainTensor& out) {
    dlpack::Tensor view;
    if (!torch_.api || reinterpret_cast<PyObject*>(Py_TYPE(object)) != torch_.tensor_type ||
        !view_of(object, view))
        return false;
    if (view.device_type != dlpack::kCpu || view.lanes != 1 || view.ndim < 1 || !contiguous(view))
        return false;
    if (view.code == dlpack::kFloat && view.bits == 32)
        out.dtype = Dtype::kFloat32;
    else if (view.code == dlpack::kBfloat && view.bits == 16)
        out.dtype = Dtype::kBfloat16;
    else if (view.code == dlpack::kFloat && view.bits == 16)
        out.dtype = Dtype::kFloat16;
    else
        return false;
    out.data = static_cast<char*>(view.data) + view.byte_offset;
    out.shape = view.shape;
    out.ndim = view.ndim;
    out.numel = 1;
    for (int i = 0; i < view.ndim; ++i) out.numel *= view.shape[i];
    return true;
}

void use_torch(const py::object& tensor_type, const py::object& empty_like, const py::object& exchange) {
    torch_.tensor_type = tensor_type.inc_ref().ptr();
    torch_.empty_like = empty_like.inc_ref().ptr();
    torch_.is_neg = py::object(tensor_type.attr("is_neg")).release().ptr();
    torch_.requires_grad = PyUnicode_InternFromString("requires_grad");
    torch_.version = PyUnicode_InternFromString("_version");
    torch_.api = nullptr;
    if (exchange.is_none()) return;
    auto* api = static_cast<const dlpack::ExchangeApi*>(
        PyCapsule_GetPointer(exchange.inc_ref().ptr(), "dlpack_exchange_api"));
    if (!api) throw py::error_already_set();
    if (api->major == 1 && api->view) torch_.api = api;
}

// How often a tensor was written to; 0 for one of inference mode, which does not count.
uint64_t version(PyObject* tensor) {
    PyObject* count = PyObject_GetAttr(tensor, torch_.version);
    if (!count) {
        PyErr_Clear();
        return 0;
    }
    const uint64_t value = PyLong_AsUnsignedLongLongMask(count);
    Py_DECREF(count);
    return value;
}

// A hash of what is mixed into it, in order.
class Fingerprint {
  public:
    uint64_t hash = 0xcbf29ce484222325;

    void mix(uint64_t word) {  // the finaliser of MurmurHash3 on what was and what comes
        hash ^= word + 0x9e3779b97f4a7c15 + (hash << 6) + (hash >> 2);
        hash = (hash ^ hash >> 33) * 0xff51afd7ed558ccd;
        hash = (hash ^ hash >> 33) * 0xc4ceb9fe1a85ec53;
    }
    void address(const void* at) { mix(reinterpret_cast<uintptr_t>(at)); }

    void hashed(PyObject* value) {
        const Py_hash_t of_value = PyObject_Hash(value);
        if (of_value == -1) PyErr_Clear();
        mix(uint64_t(of_value));
    }

    // False where the exchange API does not tell the tensor's address.
    bool tensor(PyObject* value) {
        dlpack::Tensor view;
        if (!view_of(value, view)) return false;
        address(view.data);
        mix(version(value));
        return true;
    }

    // A number by its bits (hash(-1) is hash(-2)), a string and a tuple by what they hold, the rest by its
    // address, but for lists and dicts: torch.export leaves copies in their place. False where a tensor's
    // address is not known.
    bool attribute(PyObject* value) {
        address(Py_TYPE(value));
        if (PyFloat_Check(value)) {
            const double number = PyFloat_AS_DOUBLE(value);
            uint64_t bits;
            std::memcpy(&bits, &number, sizeof bits);
            mix(bits);
        } else if (PyLong_Check(value)) {
            int overflow = 0;
            const long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
            if (overflow)
                address(value);
            else
                mix(uint64_t(number));
        } else if (PyUnicode_Check(value)) {
            hashed(value);
        } else if (PyTuple_Check(value)) {
            const Py_ssize_t count = PyTuple_GET_SIZE(value);
            mix(uint64_t(count));
            for (Py_ssize_t i = 0; i < count; ++i)
                if (!attribute(PyTuple_GET_ITEM(value, i))) return false;
        } else if (PyObject_TypeCheck(value, reinterpret_cast<PyTypeObject*>(torch_.tensor_type))) {
            return tensor(value);
        } else if (!PyList_Check(value) && !PyDict_Check(value)) {
            address(value);
        }
        return true;
    }
};

// Whether an attribute of a module is watched: not torch's own and what is private to the module, nor the
// mode, which a sampler looks at by itself.
bool watched(PyObject* name) {
    if (!PyUnicode_Check(name) || PyUnicode_GET_LENGTH(name) == 0) return true;
    const Py_UCS4 first = PyUnicode_READ_CHAR(name, 0);
    return first != '_' && (first != 't' || PyUnicode_CompareWithASCIIString(name, "training") != 0);
}

// A module's attributes: its dict, how many names it had, and the names that are watched. 200 names are
// torch's own where ten are watched, so the dict is walked only where it has grown or shrunk.
bool mix_attributes(Fingerprint& print, PyObject* dict, Py_ssize_t size, PyObject* names) {
    if (PyDict_GET_SIZE(dict) == size) {
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); ++i) {
            PyObject* key = PyTuple_GET_ITEM(names, i);
            PyObject* value = PyDict_GetItemWithError(dict, key);
            print.hashed(key);
            if (value && !print.attribute(value)) return false;
        }
        return true;
    }
    PyObject *key, *value;
    for (Py_ssize_t at = 0; PyDict_Next(dict, &at, &key, &value);) {
        if (!watched(key)) continue;
        print.hashed(key);
        if (!print.attribute(value)) return false;
    }
    return true;
}

// A number that changes when a tensor of `stores` is replaced or written to, from each one's address and
// _version, a module or hook of `children` replaced, or an attribute of `attributes` set. stores and children
// are lists of dicts, as torch's modules keep them, attributes of (dict, size, names). None where the
// exchange API does not tell an address.
py::object fingerprint(const py::list& stores, const py::list& children, const py::list& attributes) {
    Fingerprint print;
    PyObject *key, *value;
    for (const py::list& dicts : {stores, children})
        for (const py::handle dict : dicts)
            if (!PyDict_Check(dict.ptr())) throw py::type_error("fingerprint: takes lists of dicts");
    for (const py::handle store : stores)
        for (Py_ssize_t at = 0; PyDict_Next(store.ptr(), &at, &key, &value);) {
            print.hashed(key);
            if (value != Py_None && !print.tensor(value)) return py::none();
        }
    for (const py::handle modules : children)
        for (Py_ssize_t at = 0; PyDict_Next(modules.ptr(), &at, &key, &value);) {
            print.hashed(key);  // of a hook its number, which no later one has
            print.address(value);
        }
    for (const py::handle of_module : attributes) {
        PyObject* part = of_module.ptr();
        const bool right = PyTuple_Check(part) && PyTuple_GET_SIZE(part) == 3 &&
                           PyDict_Check(PyTuple_GET_ITEM(part, 0)) &&
                           PyTuple_Check(PyTuple_GET_ITEM(part, 2));
        if (!right) throw py::type_error("fingerprint: takes attributes as (dict, size, names)");
        const Py_ssize_t size = PyLong_AsSsize_t(PyTuple_GET_ITEM(part, 1));
        if (size < 0) throw py::value_error("fingerprint: takes sizes of dicts");
        if (!mix_attributes(print, PyTuple_GET_ITEM(part, 0), size, PyTuple_GET_ITEM(part, 2)))
            return py::none();
    }
    return py::int_(print.hash);
}

bool finite_at(const void* address, int64_t count) {
    const auto* x = static_cast<const float*>(address);
    bool finite = true;  // no early exit: the loop is then a vector one
    for (int64_t i = 0; i < count; ++i) finite &= std::fabs(x[i]) <= std::numeric_limits<float>::max();
    return finite;
}

bool all_finite(uintptr_t address, int64_t count) {
    return finite_at(reinterpret_cast<const void*>(address), count);
}

// ---- asked at each call of a sampler or step of a scheduler: without pybind11's dispatch, which takes 0.2
// us

// finite_floats(tensor, *shape): whether it is a plain float32 tensor of that shape without NaN and infinity;
// False where that is not known.
PyObject* finite_floats(PyObject*, PyObject* const* given, Py_ssize_t count) {
    PlainTensor x;
    if (count < 2 || !plain_tensor(given[0], x) || x.dtype != Dtype::kFloat32 || x.ndim != count - 1)
        Py_RETURN_FALSE;
    for (int i = 0; i < x.ndim; ++i) {
        const long long size = PyLong_AsLongLong(given[1 + i]);
        if (size == -1 && PyErr_Occurred()) return nullptr;
        if (x.shape[i] != size) Py_RETURN_FALSE;
    }
    return PyBool_FromLong(finite_at(x.data, x.numel));
}

// environment(name): the variable's value as os.environ has it, or None. os.environ.get takes 0.8 us.
PyObject* environment(PyObject*, PyObject* const* given, Py_ssize_t count) {
    const char* name = count == 1 ? PyUnicode_AsUTF8(given[0]) : nullptr;
    if (!name) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "environment: takes a name");
        return nullptr;
    }
    const char* value = std::getenv(name);
    if (!value) Py_RETURN_NONE;
    return PyUnicode_DecodeFSDefault(value);
}

// alike(a, b): whether both are dense tensors on the CPU of one dtype and shape; False where that is not
// known. It does not ask whether they need gradients or are negative views, as the call of a kernel will.
PyObject* alike(PyObject*, PyObject* const* given, Py_ssize_t count) {
    PlainTensor a, b;
    return PyBool_FromLong(count == 2 && dense(given[0], a) && dense(given[1], b) && a.like(b));
}

// dict_output(kind, names, values): what kind(*values) is, where kind is a dataclass that is also an
// OrderedDict of its fields: made as its constructor makes it, in a quarter of the time.
PyObject* dict_output(PyObject*, PyObject* const* given, Py_ssize_t count) {
    if (count != 3 || !PyType_Check(given[0]) || !PyTuple_Check(given[1]) || !PyTuple_Check(given[2]) ||
        !PyType_IsSubtype(reinterpret_cast<PyTypeObject*>(given[0]), &PyODict_Type) ||
        PyTuple_GET_SIZE(given[1]) != PyTuple_GET_SIZE(given[2])) {
        PyErr_SetString(PyExc_TypeError,
                        "dict_output: takes a subclass of OrderedDict, and a name for each value");
        return nullptr;
    }
    auto* type = reinterpret_cast<PyTypeObject*>(given[0]);
    auto made = py::reinterpret_steal<py::object>(type->tp_new(type, py::tuple().ptr(), nullptr));
    if (!made) return nullptr;
    const auto attributes = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(made.ptr(), nullptr));
    if (!attributes) return nullptr;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(given[1]); ++i) {
        PyObject *name = PyTuple_GET_ITEM(given[1], i), *value = PyTuple_GET_ITEM(given[2], i);
        if (PyODict_SetItem(made.ptr(), name, value) || PyDict_SetItem(attributes.ptr(), name, value))
            return nullptr;
    }
    return made.release().ptr();
}

using Fast = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t);
PyMethodDef method(const char* name, Fast function) {
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL,
            nullptr};
}
PyMethodDef kMethods[] = {
    method("alike", alike),
    method("dict_output", dict_output),
    method("environment", environment),
    method("finite_floats", finite_floats),
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

bool PlainTensor::like(const PlainTensor& other) const {
    return dtype == other.dtype && ndim == other.ndim && std::equal(shape, shape + ndim, other.shape);
}

bool PlainTensor::overlaps(const PlainTensor& other) const {
    const auto* a = static_cast<const char*>(data);
    const auto* b = static_cast<const char*>(other.data);
    return a < b + other.bytes() && b < a + bytes();
}

bool plain_tensor(PyObject* object, PlainTensor& out) {
    return dense(object, out) && is_false(PyObject_GetAttr(object, torch_.requires_grad)) &&
           is_false(PyObject_CallOneArg(torch_.is_neg, object));
}

PyObject* empty_like(PyObject* x, PlainTensor& out) {
    PyObject* made = PyObject_CallOneArg(torch_.empty_like, x);
    out.data = nullptr;
    if (made) dense(made, out);  // it needs no gradient and is no negative view: x is plain
    return made;
}

void bind_tensor(py::module_& m) {
    m.def("use_torch", &use_torch);
    m.def("fingerprint", &fingerprint);
    m.def("all_finite", &all_finite);
    py::class_<Block>(m, "Block", py::buffer_protocol(),
                      "Uninitialised memory, kept for the next of its size.")
        .def(py::init<size_t>())
        .def_buffer([](Block& b) {
            return py::buffer_info(static_cast<uint8_t*>(b.data()), py::ssize_t(b.bytes()));
        });
    m.def("kept_bytes", &kept_bytes);
    if (PyModule_AddFunctions(m.ptr(), kMethods) != 0) throw py::error_already_set();
}

}  // namespace df
