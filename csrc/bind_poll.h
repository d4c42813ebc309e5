// Lets Python handle signals and shows progress; called without the GIL by the thread that called in.
#pragma once
#include <pybind11/pybind11.h>

#include <exception>

namespace df {

struct PythonPoll {
    pybind11::object progress;
    std::exception_ptr error;

    static bool poll(void* self, int64_t done) { return static_cast<PythonPoll*>(self)->check(done); }

    bool check(int64_t done) {
        const pybind11::gil_scoped_acquire gil;
        try {
            if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
            if (!progress.is_none()) progress(done);
            return true;
        } catch (...) {
            error = std::current_exception();
            return false;
        }
    }
};

}  // namespace df
