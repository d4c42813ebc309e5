// Fibers and their scheduler.
#include <sys/mman.h>

#include <mutex>
#include <random>
#include <stdexcept>

#include "engine.h"

#if !defined(__x86_64__) || defined(DF_EMULATOR_UCONTEXT)
#include <ucontext.h>
#define DF_EMULATOR_USES_UCONTEXT 1
#else
// Saves the callee-saved registers on this stack and its pointer in *save, then takes up the other stack.
extern "C" void df_emulator_switch(void** save, void* load);
asm(R"(
.text
.type df_emulator_switch,@function
.hidden df_emulator_switch
df_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size df_emulator_switch, .-df_emulator_switch
)");
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {

Block block;
Fiber* running;

namespace {

constexpr size_t kStackBytes = 256 << 10, kGuardPage = 4096;

const std::function<void()>* kernel_body;
std::vector<std::unique_ptr<Fiber>> fibers;  // kept from launch to launch
char block_begins, block_ends;               // for the thread sanitizer

void thread_main();

}  // namespace

struct Stack {
    Stack() {
        memory = static_cast<unsigned char*>(mmap(nullptr, kGuardPage + kStackBytes, PROT_READ | PROT_WRITE,
                                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (memory == MAP_FAILED) throw std::bad_alloc();
        mprotect(memory, kGuardPage, PROT_NONE);
    }
    ~Stack() {
        sanitizer::unpoison(memory + kGuardPage, kStackBytes);  // of frames that an error left behind
        munmap(memory, kGuardPage + kStackBytes);
    }

    unsigned char* memory;
#if defined(DF_EMULATOR_USES_UCONTEXT)
    ucontext_t context;
#else
    void* pointer;
#endif
};

Fiber::Fiber() : stack(new Stack), tsan(sanitizer::create_fiber()) {}
Fiber::~Fiber() { sanitizer::destroy_fiber(tsan); }

namespace {

void* scheduler_tsan;

#if defined(DF_EMULATOR_USES_UCONTEXT)
ucontext_t scheduler_context;

void prepare(Stack& stack) {
    getcontext(&stack.context);
    stack.context.uc_stack.ss_sp = stack.memory + kGuardPage;
    stack.context.uc_stack.ss_size = kStackBytes;
    stack.context.uc_link = nullptr;
    makecontext(&stack.context, thread_main, 0);
}
void enter(Stack& stack) { swapcontext(&scheduler_context, &stack.context); }
void leave(Stack& stack) { swapcontext(&stack.context, &scheduler_context); }
#else
void* scheduler_pointer;

void prepare(Stack& stack) {
    auto** top = reinterpret_cast<void**>(stack.memory + kGuardPage + kStackBytes);
    *--top = nullptr;  // where thread_main would return to; keeps the stack aligned as after a call
    *--top = reinterpret_cast<void*>(&thread_main);
    for (int saved_register = 0; saved_register < 6; ++saved_register) *--top = nullptr;
    stack.pointer = top;
}
void enter(Stack& stack) { df_emulator_switch(&scheduler_pointer, stack.pointer); }
void leave(Stack& stack) { df_emulator_switch(&stack.pointer, scheduler_pointer); }
#endif

void to_scheduler() {
    sanitizer::switch_to(scheduler_tsan);
    leave(*running->stack);
}

[[noreturn]] void finish() {
    running->done = true;
    for (;;) to_scheduler();
}

void thread_main() {
    sanitizer::acquire(&block_begins);
    (*kernel_body)();
    sanitizer::release(&block_ends);
    leave_meetings();
    finish();
}

std::string position(const uint3& at) {
    return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
}

// What a block that has ended did wrong; empty for nothing.
std::string left_behind() {
    const std::string where = "block " + position(blockIdx);
    if (!block.shared.guards_intact()) return where + ": wrote outside its dynamic shared memory";
    for (unsigned i = 0; i < block.threads; ++i) {
        const Fiber& f = *fibers[i];
        if (!f.copies.empty() || !f.products.empty())
            return where + " thread " + position(f.index) + ": exits with " +
                   (f.copies.empty() ? "wgmma" : "cp.async copies") + " that it never waited for";
    }
    return "";
}

// Who waits where, of a block in which nobody can go on.
std::string deadlock() {
    std::string message = "block " + position(blockIdx) + ": deadlock;";
    int named = 0;
    for (unsigned i = 0; i < block.threads && named < 4; ++i)
        if (!fibers[i]->done) {
            message += " thread " + std::to_string(i) + " waits at " + describe(fibers[i]->site) + ";";
            ++named;
        }
    return message;
}

// The order of threads in one round: by index, or shuffled, with about half of the warps asleep, so that
// warps run far ahead of each other.
class Schedule {
  public:
    explicit Schedule(unsigned threads) : order_(threads), random_(uint64_t(settings.schedule)) {
        for (unsigned i = 0; i < threads; ++i) order_[i] = i;
    }

    const std::vector<unsigned>& next_round() {
        if (settings.schedule > 0) {
            for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[random_() % i]);
            asleep_ = uint32_t(random_());
        }
        return order_;
    }
    bool asleep(unsigned warp) const { return asleep_ >> warp & 1; }

  private:
    std::vector<unsigned> order_;
    std::mt19937_64 random_;
    uint32_t asleep_ = 0;
};

void run(Fiber& fiber) {
    running = &fiber;
    threadIdx = fiber.index;
    sanitizer::switch_to(fiber.tsan);
    enter(*fiber.stack);
}

void run_threads(Schedule& schedule) {
    while (block.live && block.error.empty()) {
        bool moved = false, skipped = false;
        unsigned last_warp = 0;
        for (const unsigned i : schedule.next_round()) {
            Fiber& fiber = *fibers[i];
            if (fiber.done || (fiber.generation && *fiber.generation == fiber.seen)) continue;
            if (schedule.asleep(fiber.warp)) {
                skipped = true;
                continue;
            }
            if (settings.schedule < 0 && moved && fiber.warp != last_warp) break;
            moved = true;
            last_warp = fiber.warp;
            run(fiber);
            if (!block.error.empty()) return;
        }
        if (!moved && !skipped) block.error = deadlock();
    }
}

void prepare_block(size_t shared_bytes) {
    block.live = block.threads;
    block.barriers.fill(Barrier());
    block.warpgroups.fill(Warpgroup());
    for (auto& meetings : block.meetings) meetings.clear();
    block.gone.fill(~0u);
    block.shared.prepare(shared_bytes);
    for (unsigned i = 0; i < block.threads; ++i) {
        Fiber& f = *fibers[i];
        f.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
        f.linear = i;
        f.lane = i % kWarp;
        f.warp = i / kWarp;
        block.gone[f.warp] &= ~(1u << f.lane);
        f.done = f.registers_fenced = false;
        f.generation = nullptr;
        f.unfenced.clear();
        prepare(*f.stack);
    }
}

}  // namespace

int lane() { return int(running->lane); }

void suspend(const uint64_t* generation, const Site& site) {
    Fiber& fiber = *running;
    fiber.generation = generation;
    fiber.seen = *generation;
    fiber.site = site;
    to_scheduler();
    fiber.generation = nullptr;
}

std::string describe(const Site& site) {
    if (!site.file) return site.operation;
    const std::string file = site.file;
    return std::string(site.operation) + " (" + file.substr(file.rfind('/') + 1) + ":" +
           std::to_string(site.line) + ")";
}

void fail(const std::string& message) {
    block.error = "block " + position(blockIdx) + " thread " + position(running->index) + ": " + message;
    finish();
}

void run_grid(dim3 grid, dim3 threads, size_t shared_bytes, const std::function<void()>& body) {
    static std::mutex one_at_a_time;  // the state above, and the kernels' static __shared__ variables
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    kernel_body = &body;
    gridDim = grid;
    blockDim = threads;
    block.threads = threads.x * threads.y * threads.z;
    block.error.clear();
    scheduler_tsan = sanitizer::current_fiber();
    while (fibers.size() < block.threads) fibers.push_back(std::make_unique<Fiber>());
    Schedule schedule(block.threads);
    const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
    for (uint64_t i = 0; i < blocks && block.error.empty(); ++i) {
        blockIdx = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)};
        prepare_block(shared_bytes);
        sanitizer::release(&block_begins);
        run_threads(schedule);
        sanitizer::acquire(&block_ends);
        if (block.error.empty()) block.error = left_behind();
    }
    if (!block.error.empty()) {
        fibers.clear();  // some are in the middle of the kernel
        throw std::runtime_error("emulated CUDA: " + block.error);
    }
}

}  // namespace emulator
