// Kernels that use each collective of CUDA and each wrapper of csrc/cuda/ptx.h, for
// tests/test_cuda_emulator.py. nvcc compiles them too: on a device the same functions take device pointers.
// Some can be told to contain a bug, which the emulator has to notice.
#pragma once
#include <cstring>
#include <exception>
#include <string>

#include "cuda/device.h"

#define DF_EXPORT extern "C" __attribute__((visibility("default")))

namespace self_test {

enum Bug : int {
    kNone,
    kMissingBarrier,        // before partial results are read
    kMissingSecondBarrier,  // before they are overwritten: no schedule changes the result
    kDivergentBarrier,
    kTwoBarriers,  // the halves of a block at different ones
    kEarlyExit,
    kDivergentWarp,
    kLaneOutsideMask,
    kShuffleFromOutside,
    kExitedLane,
    kMissingSyncwarp,
    kMissingHandover,
    kWrongBarrierCount,
    kHalfWarpAtBarrier,
    kMissingCopyWait,
    kMissingCopyCommit,
    kMissingCopyBarrier,
    kCopyMisaligned,
    kCopyOutOfRange,
    kWriteOutOfRange,
    kReadUnwritten,
    kGlobalOutOfRange,
    kReadMisaligned,
    kSwappedFragments,
    kRowOutOfRange,
    kWrongStride,
    kStrideOutOfRange,
    kMissingProxyFence,
    kMissingFence,
    kMissingProductWait,
    kOperandsDiffer,
    kBugs
};

constexpr const char* kBugNames[] = {
    "",
    "missing barrier",
    "missing second barrier",
    "divergent barrier",
    "two barriers",
    "early exit",
    "divergent warp",
    "lane outside mask",
    "shuffle from outside",
    "exited lane",
    "missing syncwarp",
    "missing handover",
    "wrong barrier count",
    "half a warp at a barrier",
    "missing copy wait",
    "missing copy commit",
    "missing copy barrier",
    "copy misaligned",
    "copy out of range",
    "write out of range",
    "read unwritten",
    "global out of range",
    "read misaligned",
    "swapped fragments",
    "row out of range",
    "wrong stride",
    "stride out of range",
    "missing proxy fence",
    "missing fence",
    "missing product wait",
    "operands differ",
};
static_assert(sizeof kBugNames / sizeof *kBugNames == kBugs, "a name for each");

// On a device there are none, nor anything of them in the code.
__device__ constexpr bool has(Bug given, Bug bug) {
#if defined(DF_EMULATED)
    return given == bug;
#else
    (void)given;
    (void)bug;
    return false;
#endif
}

inline Bug bug_named(const char* name) {
    for (int i = 0; i < kBugs; ++i)
        if (std::strcmp(kBugNames[i], name) == 0) return Bug(i);
    throw std::invalid_argument(std::string("no bug is named ") + name);
}

// Runs f, for a caller that knows no exceptions: null, or what went wrong.
template <class F>
const char* caught(const F& f) {
    static thread_local std::string message;
    try {
        f();
        return nullptr;
    } catch (const std::exception& error) {
        message = error.what();
        return message.c_str();
    }
}

}  // namespace self_test
