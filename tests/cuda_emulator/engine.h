// Inside the engine: fibers, the block that runs, how threads meet. Kernels never see this.
#pragma once
#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "emulator.h"
#include "settings.h"

namespace emulator {

constexpr unsigned kWarp = 32, kWarpgroup = 128, kMaxThreads = 1024, kBarriers = 16;

// ---- what one thread has under way

struct Copy {
    unsigned char* target;
    const void* source;
};

// The operands of one wgmma, which runs when its group is waited for.
struct Product {
    Half type;
    int n;
    bool transposed, accumulate;
    uint64_t descriptor;
    uint32_t a[4];
    float* d;
};

// The true content of accumulators that the kernel sees as NaN, while products on them are under way.
struct Accumulators {
    float* d;
    std::vector<float> value;
    int under_way;
};

// Operations in the order they were issued: the open group, then the committed ones, oldest first.
template <class Operation>
struct Groups {
    std::vector<Operation> open;
    std::deque<std::vector<Operation>> committed;

    void commit() {
        committed.push_back(std::move(open));
        open.clear();
    }
    bool empty() const { return open.empty() && committed.empty(); }
};

struct Stack;  // memory and saved registers of a suspended fiber

struct Fiber {
    uint3 index;
    unsigned linear, lane, warp;
    bool done;
    // Suspended until *generation differs from `seen`; null: ready.
    const uint64_t* generation;
    uint64_t seen;
    Site site;
    Groups<Copy> copies;
    std::vector<uint32_t> unfenced;  // units of shared memory it copied since its last fence.proxy.async
    Groups<Product> products;
    std::vector<Accumulators> accumulators;
    bool registers_fenced;  // by wgmma.fence, since the last wait
    std::unique_ptr<Stack> stack;
    void* tsan;

    Fiber();
    ~Fiber();
};

// ---- where threads meet

struct Barrier {
    unsigned arrived = 0, expected = 0, predicates = 0, result = 0;
    std::array<uint32_t, kMaxThreads / kWarp> lanes{};  // who of each warp
    uint64_t generation = 0;
    Site site{};
    char order[2];  // for the thread sanitizer: one token per parity, so that a fast thread's next arrival
                    // does not order a slow thread's departure
};

struct Meeting {  // of the lanes in a mask
    uint32_t mask = 0, arrived = 0;
    uint64_t generation = 0;
    Site site{};
    std::array<void*, kWarp> operands{};
    char order[2];

    void release() {
        arrived = 0;
        ++generation;
    }
};

struct Warpgroup {
    unsigned arrived = 0;
    uint64_t generation = 0;
    Product first{};
};

struct SharedMemory {
    unsigned char* begin = nullptr;
    size_t bytes = 0;
    std::vector<uint16_t> unfenced;  // per 16 bytes: how many threads copied there and did not fence

    bool holds(const void* pointer, size_t n) const {
        const auto* p = static_cast<const unsigned char*>(pointer);
        return p >= begin && p + n <= begin + bytes;
    }
    void prepare(size_t wanted);  // poisons all of it and sets guards around it
    bool guards_intact() const;   // false: a kernel wrote beside it

  private:
    std::vector<unsigned char> storage_;
};

struct Block {
    unsigned threads = 0, live = 0;
    std::array<Barrier, kBarriers> barriers;
    std::array<std::deque<Meeting>, kMaxThreads / kWarp> meetings;  // deque: waiting fibers point into it
    std::array<uint32_t, kMaxThreads / kWarp> gone;                 // lanes that have exited or never were
    std::array<Warpgroup, kMaxThreads / kWarpgroup> warpgroups;
    SharedMemory shared;
    std::string error;
};

extern Block block;
extern Fiber* running;

void run_grid(dim3 grid, dim3 threads, size_t shared_bytes, const std::function<void()>& body);

// Back to the scheduler until *generation changes.
void suspend(const uint64_t* generation, const Site& site);
// The memory at a 32-bit shared address; fails where it is not all inside.
const unsigned char* shared_pointer(uint32_t address, size_t bytes);
// Ends the launch with an error that names the block and the running thread.
[[noreturn]] void fail(const std::string& message);
std::string describe(const Site& site);

// The running thread exits: an error where others wait for it.
void leave_meetings();
// Joins the lanes of the mask. Null for all but the last to arrive, and then only once that one has called
// release(): it has everyone's operands.
Meeting* meet(const Site& site, uint32_t mask, void* operands, bool orders_memory = false);

// compute(lane -> operands of that lane), by the last lane to arrive
template <class Operands, class Compute>
void warp_operation(const Site& site, uint32_t mask, Operands& mine, const Compute& compute);

// ---- sanitizers; nothing where none is loaded

namespace sanitizer {

// Accesses that the engine makes in the kernel's name.
void reads(const void* pointer, size_t bytes);
void writes(const void* pointer, size_t bytes);
// What this thread did before release happens before what another does after acquire.
void release(void* token);
void acquire(void* token);
void poison(const void* pointer, size_t bytes);
void unpoison(const void* pointer, size_t bytes);

// The engine touches other threads' operands: not the kernel's doing.
class Unwatched {
  public:
    Unwatched();
    ~Unwatched();
};

void* create_fiber();
void destroy_fiber(void* fiber);
void* current_fiber();
void switch_to(void* fiber);

}  // namespace sanitizer

template <class Operands, class Compute>
void warp_operation(const Site& site, uint32_t mask, Operands& mine, const Compute& compute) {
    Meeting* meeting = meet(site, mask, &mine);
    if (!meeting) return;
    {
        const sanitizer::Unwatched unwatched;
        compute([meeting](unsigned lane) -> Operands& {
            return *static_cast<Operands*>(meeting->operands[lane]);
        });
    }
    meeting->release();
}

// Calls f(lane) for the lanes of a mask.
template <class F>
void for_lanes(uint32_t mask, const F& f) {
    for (unsigned lane = 0; lane < kWarp; ++lane)
        if (mask >> lane & 1) f(lane);
}

}  // namespace emulator
