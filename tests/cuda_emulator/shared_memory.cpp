// Dynamic shared memory, and the copies that fill it.
#include <algorithm>
#include <cstring>

#include "engine.h"

namespace emulator {
namespace {

constexpr unsigned char kPoison = 0xFF;  // NaN in every format
constexpr size_t kGuardBytes = 4096, kAlignment = 1024, kUnit = 16;
constexpr uint32_t kFirstAddress = 1024;  // so that 0 is not an address

void land(const Copy& copy) {
    sanitizer::reads(copy.source, kUnit);
    sanitizer::writes(copy.target, kUnit);
    std::memcpy(copy.target, copy.source, kUnit);
    const auto unit = uint32_t(size_t(copy.target - block.shared.begin) / kUnit);
    ++block.shared.unfenced[unit];
    running->unfenced.push_back(unit);
}

}  // namespace

void SharedMemory::prepare(size_t wanted) {
    sanitizer::unpoison(storage_.data(), storage_.size());
    storage_.assign(kAlignment + kGuardBytes + wanted + kGuardBytes, kPoison);
    const auto address = reinterpret_cast<uintptr_t>(storage_.data()) + kGuardBytes;
    begin = reinterpret_cast<unsigned char*>((address + kAlignment - 1) / kAlignment * kAlignment);
    bytes = wanted;
    unfenced.assign((wanted + kUnit - 1) / kUnit, 0);
    sanitizer::poison(begin - kGuardBytes, kGuardBytes);
    sanitizer::poison(begin + bytes, kGuardBytes);
}

bool SharedMemory::guards_intact() const {
    const auto intact = [](const unsigned char* guard) {
        return std::all_of(guard, guard + kGuardBytes, [](unsigned char c) { return c == kPoison; });
    };
    return intact(begin - kGuardBytes) && intact(begin + bytes);
}

unsigned char* shared_memory() { return block.shared.begin; }

uint32_t shared_address(const void* pointer) {
    if (!block.shared.holds(pointer, 1)) fail("an address outside dynamic shared memory");
    return kFirstAddress + uint32_t(static_cast<const unsigned char*>(pointer) - block.shared.begin);
}

const unsigned char* shared_pointer(uint32_t address, size_t bytes) {
    if (address < kFirstAddress || address - kFirstAddress + bytes > block.shared.bytes)
        fail("an address outside dynamic shared memory");
    return block.shared.begin + (address - kFirstAddress);
}

void copy_async(void* target, const void* source) {
    if (!block.shared.holds(target, kUnit)) fail("cp.async: the target is outside dynamic shared memory");
    if (reinterpret_cast<uintptr_t>(target) % kUnit || reinterpret_cast<uintptr_t>(source) % kUnit)
        fail("cp.async: addresses that are no multiple of 16");
    sanitizer::reads(source, kUnit);
    sanitizer::writes(target, kUnit);
    std::memset(target, kPoison, kUnit);
    running->copies.open.push_back({static_cast<unsigned char*>(target), source});
}

void copy_commit() { running->copies.commit(); }

void copy_wait(int left) {
    auto& groups = running->copies.committed;
    for (; groups.size() > size_t(left); groups.pop_front())
        for (const Copy& copy : groups.front()) land(copy);
}

void fence_async_proxy() {
    for (const uint32_t unit : running->unfenced) --block.shared.unfenced[unit];
    running->unfenced.clear();
}

}  // namespace emulator
