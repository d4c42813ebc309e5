// Where threads meet: barriers of a block, and operations of a warp.
#include <cstring>

#include "engine.h"

namespace emulator {
namespace {

bool same(const Site& a, const Site& b) {
    return a.line == b.line && std::strcmp(a.operation, b.operation) == 0;
}

// The barrier's state as the arriving thread finds it, or its own where it is the first.
Barrier& arrive(int id, unsigned expected, const Site& site, bool predicate) {
    Barrier& barrier = block.barriers[size_t(id)];
    if (barrier.arrived == 0) {
        barrier.expected = expected;
        barrier.site = site;
    } else if (barrier.expected != expected) {
        fail(describe(site) + ": expects " + std::to_string(expected) + " threads, others " +
             std::to_string(barrier.expected));
    } else if (id == 0 && !same(barrier.site, site)) {
        fail("divergent barrier: at " + describe(site) + ", others at " + describe(barrier.site));
    }
    uint32_t& lanes = barrier.lanes[running->warp];
    if (lanes >> running->lane & 1) fail(describe(site) + ": arrives twice before others have");
    lanes |= 1u << running->lane;
    ++barrier.arrived;
    barrier.predicates += predicate;
    sanitizer::release(&barrier.order[barrier.generation & 1]);
    return barrier;
}

// The last thread opens the barrier, the others wait for that.
void pass(Barrier& barrier, bool wait) {
    char* order = &barrier.order[barrier.generation & 1];
    const Site site = barrier.site;
    if (barrier.arrived == barrier.expected) {
        for (const uint32_t lanes : barrier.lanes)
            if (lanes != 0 && lanes != ~0u && block.threads % kWarp == 0)
                fail(describe(site) + ": only some lanes of a warp arrived");
        barrier.lanes.fill(0);
        barrier.result = barrier.predicates;
        barrier.arrived = barrier.predicates = 0;
        ++barrier.generation;
    } else if (wait) {
        suspend(&barrier.generation, site);
    }
    if (wait) sanitizer::acquire(order);
}

}  // namespace

int block_barrier(const Site& site, bool predicate) {
    if (block.live < block.threads) fail("divergent barrier: at " + describe(site) + ", others have exited");
    Barrier& barrier = arrive(0, block.threads, site, predicate);
    pass(barrier, true);
    return int(barrier.result);
}

void named_barrier(int id, int threads, bool wait) {
    const Site site{wait ? "bar.sync" : "bar.arrive"};
    if (id < 1 || id >= int(kBarriers)) fail(describe(site) + ": accepted: barrier 1 to 15");
    if (threads <= 0 || threads % int(kWarp) || unsigned(threads) > block.threads)
        fail(describe(site) + ": accepted: whole warps, no more threads than the block has");
    pass(arrive(id, unsigned(threads), site, false), wait);
}

void leave_meetings() {
    const Fiber& me = *running;
    --block.live;
    block.gone[me.warp] |= 1u << me.lane;
    if (block.barriers[0].arrived)  // of the named ones it may have been no part
        fail("exits while others wait at " + describe(block.barriers[0].site));
    for (const Meeting& meeting : block.meetings[me.warp])
        if (meeting.arrived && meeting.mask >> me.lane & 1)
            fail("exits while lanes of its warp wait at " + describe(meeting.site));
}

Meeting* meet(const Site& site, uint32_t mask, void* operands, bool orders_memory) {
    const Fiber& me = *running;
    const uint32_t bit = 1u << me.lane;
    if (!(mask & bit)) fail(describe(site) + ": the calling lane is not in the mask");
    if (mask & block.gone[me.warp]) fail(describe(site) + ": the mask names lanes that have exited");
    Meeting* meeting = nullptr;
    for (Meeting& other : block.meetings[me.warp]) {
        if (other.mask == mask)
            meeting = &other;
        else if (other.arrived && (other.mask & mask))
            fail("divergent warp: masks overlap at " + describe(site) + " and " + describe(other.site));
    }
    if (!meeting) {
        meeting = &block.meetings[me.warp].emplace_back();
        meeting->mask = mask;
    }
    if (meeting->arrived == 0)
        meeting->site = site;
    else if (!same(meeting->site, site))
        fail("divergent warp: at " + describe(site) + ", others at " + describe(meeting->site));
    meeting->operands[me.lane] = operands;
    meeting->arrived |= bit;
    char* order = &meeting->order[meeting->generation & 1];
    if (orders_memory) sanitizer::release(order);
    const bool last = meeting->arrived == mask;
    if (!last) suspend(&meeting->generation, site);
    if (orders_memory) sanitizer::acquire(order);
    return last ? meeting : nullptr;
}

void warp_barrier(const Site& site, uint32_t mask) {
    if (Meeting* meeting = meet(site, mask, nullptr, true)) meeting->release();
}

namespace {

struct Shuffled {
    void* value;
    size_t size;
    int source;
    unsigned char received[8];
};

struct Vote {
    bool predicate;
    uint32_t result;
};

void copy_bytes(void* target, const void* source, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i)
        static_cast<unsigned char*>(target)[i] = static_cast<const unsigned char*>(source)[i];
}

}  // namespace

void shuffle(const Site& site, uint32_t mask, void* value, size_t size, int source) {
    Shuffled mine{value, size, source, {}};
    if (!(mask >> source & 1)) fail(describe(site) + ": reads from a lane that is not in the mask");
    warp_operation(site, mask, mine, [mask](const auto& of) {
        for_lanes(mask, [&](unsigned lane) {
            copy_bytes(of(lane).received, of(unsigned(of(lane).source)).value, of(lane).size);
        });
        for_lanes(mask, [&](unsigned lane) { copy_bytes(of(lane).value, of(lane).received, of(lane).size); });
    });
}

uint32_t ballot(const Site& site, uint32_t mask, bool predicate) {
    Vote mine{predicate, 0};
    warp_operation(site, mask, mine, [mask](const auto& of) {
        uint32_t votes = 0;
        for_lanes(mask, [&](unsigned lane) { votes |= uint32_t(of(lane).predicate) << lane; });
        for_lanes(mask, [&](unsigned lane) { of(lane).result = votes; });
    });
    return mine.result;
}

}  // namespace emulator
