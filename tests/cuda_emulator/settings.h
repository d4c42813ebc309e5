// What tests choose of the emulated machine.
#pragma once
#include <cstdint>

namespace emulator {

struct Settings {
    // 0: threads in the order of their index; above: the seed of a random order; -1: the first warp that can
    // go on does, so that the others have not begun where no barrier makes it wait for them
    int64_t schedule = 0;
    int64_t devices = 1;
    int64_t driver = 13000;  // as cudaDriverGetVersion tells it; 0: none
    int64_t capability = 90;
    int64_t multiprocessors = 2;
    int64_t shared_limit = 232448;  // bytes of dynamic shared memory that a block can have
    int64_t capturing = 0;          // every stream is being captured
};

extern Settings settings;

}  // namespace emulator

// The same from outside, for tests that hold the library: false where no setting has the name.
extern "C" __attribute__((visibility("default"))) bool emulator_set(const char* name, int64_t value);
