#include "blocks.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace df {
namespace {

constexpr size_t kHugePage = size_t(2) << 20, kMostBytes = size_t(1) << 30, kMostBlocks = 8;

struct Free {
    void* data;
    size_t bytes;
};

struct Kept {
    std::mutex mutex;
    std::vector<Free> blocks;  // the oldest first
    size_t bytes = 0;

    void drop(size_t i) {
        bytes -= blocks[i].bytes;
        blocks.erase(blocks.begin() + std::ptrdiff_t(i));
    }
};

// Never destroyed: a result may outlive the static objects of this library.
Kept& kept() {
    static Kept* const all = [] {
        auto* made = new Kept;
        made->blocks.reserve(kMostBlocks + 1);
        return made;
    }();
    return *all;
}

size_t rounded(size_t bytes) { return (bytes + kHugePage - 1) / kHugePage * kHugePage; }

// A hint that what was never touched be mapped 2 MB at a time: faults of 4 KB take longer than a step.
void prefer_huge_pages(void* data, size_t bytes) {
#ifdef __linux__
    madvise(data, bytes, MADV_HUGEPAGE);  // it may fail
#else
    (void)data, (void)bytes;
#endif
}

// The newest block of this size, or null. Like `keep`, it does nothing where another thread is at it, so that
// neither waits for a thread that a fork has left behind.
void* take(size_t bytes) {
    Kept& all = kept();
    const std::unique_lock<std::mutex> lock(all.mutex, std::try_to_lock);
    for (size_t i = lock ? all.blocks.size() : 0; i-- > 0;)
        if (all.blocks[i].bytes == bytes) {
            void* data = all.blocks[i].data;
            all.drop(i);
            return data;
        }
    return nullptr;
}

bool keep(void* data, size_t bytes) {
    Kept& all = kept();
    const std::unique_lock<std::mutex> lock(all.mutex, std::try_to_lock);
    if (!lock || bytes > kMostBytes) return false;
#ifdef __linux__
    madvise(data, bytes, MADV_FREE);
#endif
    all.blocks.push_back({data, bytes});
    all.bytes += bytes;
    while (all.bytes > kMostBytes || all.blocks.size() > kMostBlocks) {
        std::free(all.blocks[0].data);
        all.drop(0);
    }
    return true;
}

}  // namespace

Block::Block(size_t bytes) : data_(take(rounded(bytes))), bytes_(bytes) {
    if (data_) return;
    if (bytes > SIZE_MAX - kHugePage || posix_memalign(&data_, kHugePage, rounded(bytes)) != 0)
        throw std::bad_alloc();
    prefer_huge_pages(data_, rounded(bytes));
}

Block::~Block() {
    if (!keep(data_, rounded(bytes_))) std::free(data_);
}

size_t kept_bytes() {
    Kept& all = kept();
    const std::lock_guard<std::mutex> lock(all.mutex);
    return all.bytes;
}

}  // namespace df
