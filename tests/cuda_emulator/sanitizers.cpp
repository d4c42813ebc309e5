// The sanitizers' runtimes, called where a test has loaded one: weak symbols, null otherwise. The engine
// itself is compiled without instrumentation, so it reports here what it does in a kernel's name.
#include "engine.h"

#define WEAK __attribute__((weak))
extern "C" {
WEAK void* __tsan_get_current_fiber();
WEAK void* __tsan_create_fiber(unsigned flags);
WEAK void __tsan_destroy_fiber(void* fiber);
WEAK void __tsan_switch_to_fiber(void* fiber, unsigned flags);
WEAK void __tsan_acquire(void* token);
WEAK void __tsan_release(void* token);
WEAK void __tsan_read_range(void* pointer, unsigned long bytes);
WEAK void __tsan_write_range(void* pointer, unsigned long bytes);
WEAK void __tsan_ignore_thread_begin();
WEAK void __tsan_ignore_thread_end();
WEAK void __asan_poison_memory_region(const volatile void* pointer, size_t bytes);
WEAK void __asan_unpoison_memory_region(const volatile void* pointer, size_t bytes);
WEAK void* __asan_region_is_poisoned(void* pointer, size_t bytes);
}
#undef WEAK

namespace emulator {
namespace sanitizer {
namespace {

bool threads() { return __tsan_create_fiber != nullptr; }
bool addresses() { return __asan_poison_memory_region != nullptr; }

void check(void* pointer, size_t bytes) {
    if (addresses() && __asan_region_is_poisoned(pointer, bytes)) fail("an address outside every allocation");
}

}  // namespace

void reads(const void* pointer, size_t bytes) {
    check(const_cast<void*>(pointer), bytes);
    if (threads()) __tsan_read_range(const_cast<void*>(pointer), bytes);
}

void writes(const void* pointer, size_t bytes) {
    check(const_cast<void*>(pointer), bytes);
    if (threads()) __tsan_write_range(const_cast<void*>(pointer), bytes);
}

void release(void* token) {
    if (threads()) __tsan_release(token);
}

void acquire(void* token) {
    if (threads()) __tsan_acquire(token);
}

void poison(const void* pointer, size_t bytes) {
    if (addresses()) __asan_poison_memory_region(pointer, bytes);
}

void unpoison(const void* pointer, size_t bytes) {
    if (addresses()) __asan_unpoison_memory_region(pointer, bytes);
}

Unwatched::Unwatched() {
    if (threads()) __tsan_ignore_thread_begin();
}

Unwatched::~Unwatched() {
    if (threads()) __tsan_ignore_thread_end();
}

void* create_fiber() { return threads() ? __tsan_create_fiber(0) : nullptr; }

void destroy_fiber(void* fiber) {
    if (fiber) __tsan_destroy_fiber(fiber);
}

void* current_fiber() { return threads() ? __tsan_get_current_fiber() : nullptr; }

void switch_to(void* fiber) {
    constexpr unsigned kNoOrder = 1;  // else every switch would order the threads
    if (threads()) __tsan_switch_to_fiber(fiber, kNoOrder);
}

}  // namespace sanitizer
}  // namespace emulator
