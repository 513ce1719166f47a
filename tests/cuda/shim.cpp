/* The CUDA runtime of cuda_runtime.h on the host: devices that are memory, streams that are queues, and kernels that
 * run on the thread that waits for them.
 *
 * A block's threads are fibers. A fiber runs until its thread must wait for others, or returns; then the next one that
 * can run goes on, on its own stack, or if it has not begun, on the stack that is free now. A kernel without barriers
 * so needs one stack and no switch. One lock is held by every call: one kernel of the process runs at a time, which is
 * what makes static __shared__ variables, and the variables of section "Threads" below, right.
 *
 * Compile it without -fsanitize=thread, but with -DSHIM_TSAN, for a program under ThreadSanitizer: each thread of a
 * block is a thread to it, and only what CUDA promises to order is ordered: barriers and __syncwarp, but not shuffles
 * and votes, which are no memory barriers. Blocks of a grid are ordered, as they use the same shared memory. With
 * AddressSanitizer device memory is poisoned while no work of a stream runs, so the host cannot touch it unseen. */
#include "cuda_runtime.h"

#include <cxxabi.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#ifdef __has_feature
#define SHIM_HAS(feature) __has_feature(feature)
#else
#define SHIM_HAS(feature) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || SHIM_HAS(address_sanitizer)
#define SHIM_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef SHIM_TSAN
#include <sanitizer/tsan_interface.h>
#endif

/* ==== Fibers ================================================================================== */

#define STACK_SIZE ((size_t)256 << 10)

struct Fiber {
    void *sp; /* while it does not run */
    const void *bottom;
    size_t size;
    void *fake, *tsan; /* what the sanitizers remember of it */
    Fiber *next_free;
};

/* Saves the callee's registers on the stack, its place in *from, and goes on at to. */
extern "C" void shim_switch(void **from, void *to);

#if defined(__x86_64__)
__asm__(".pushsection .text\n"
        ".globl shim_switch\n"
        ".hidden shim_switch\n"
        ".type shim_switch, @function\n"
        "shim_switch:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size shim_switch, . - shim_switch\n"
        ".popsection\n");
#define SWITCH_WORDS 8 /* registers, where to go on, and a word that keeps the stack aligned */
#define SWITCH_RETURN 6
#elif defined(__aarch64__)
__asm__(".pushsection .text\n"
        ".globl shim_switch\n"
        ".hidden shim_switch\n"
        ".type shim_switch, %function\n"
        "shim_switch:\n"
        "    sub sp, sp, #160\n"
        "    stp x19, x20, [sp, #0]\n"
        "    stp x21, x22, [sp, #16]\n"
        "    stp x23, x24, [sp, #32]\n"
        "    stp x25, x26, [sp, #48]\n"
        "    stp x27, x28, [sp, #64]\n"
        "    stp x29, x30, [sp, #80]\n"
        "    stp d8, d9, [sp, #96]\n"
        "    stp d10, d11, [sp, #112]\n"
        "    stp d12, d13, [sp, #128]\n"
        "    stp d14, d15, [sp, #144]\n"
        "    mov x9, sp\n"
        "    str x9, [x0]\n"
        "    mov sp, x1\n"
        "    ldp x19, x20, [sp, #0]\n"
        "    ldp x21, x22, [sp, #16]\n"
        "    ldp x23, x24, [sp, #32]\n"
        "    ldp x25, x26, [sp, #48]\n"
        "    ldp x27, x28, [sp, #64]\n"
        "    ldp x29, x30, [sp, #80]\n"
        "    ldp d8, d9, [sp, #96]\n"
        "    ldp d10, d11, [sp, #112]\n"
        "    ldp d12, d13, [sp, #128]\n"
        "    ldp d14, d15, [sp, #144]\n"
        "    add sp, sp, #160\n"
        "    ret\n"
        ".size shim_switch, . - shim_switch\n"
        ".popsection\n");
#define SWITCH_WORDS 20
#define SWITCH_RETURN 11
#else
#error "shim_switch is written for x86-64 and 64-bit ARM"
#endif

static Fiber *running, *came_from, *free_fibers, host_fiber;
static size_t n_fibers;
#ifdef SHIM_TSAN
static Fiber *fiber_of[1024]; /* thread i of any block */
#endif

/* On arrival, on the stack that was gone to. */
static void arrive(void *fake) {
#ifdef SHIM_ASAN
    __sanitizer_finish_switch_fiber(fake, &came_from->bottom, &came_from->size);
#endif
    (void)fake;
}

static void switch_to(Fiber *to) {
    Fiber *from = came_from = running;
    running = to;
#ifdef SHIM_ASAN
    __sanitizer_start_switch_fiber(&from->fake, to->bottom, to->size);
#endif
#ifdef SHIM_TSAN
    __tsan_switch_to_fiber(to->tsan, __tsan_switch_to_fiber_no_sync);
#endif
    shim_switch(&from->sp, to->sp);
    arrive(from->fake);
}

static void run_threads(void);

/* The top of a stack is not at the same place of its page as those of others, so that they share caches. */
static Fiber *new_fiber(void) {
    Fiber *f = new Fiber();
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *stack = mmap(nullptr, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED || mprotect(stack, page, PROT_NONE) != 0) {
        fprintf(stderr, "shim: no memory for the stack of fiber %zu\n", n_fibers);
        abort();
    }
    uintptr_t *top = (uintptr_t *)stack + (STACK_SIZE - n_fibers++ % 24 * 320) / sizeof(uintptr_t) - SWITCH_WORDS;
    top[SWITCH_RETURN] = (uintptr_t)run_threads;
    f->sp = top;
    f->bottom = stack;
    f->size = STACK_SIZE;
#ifdef SHIM_TSAN
    f->tsan = __tsan_create_fiber(0);
#endif
    return f;
}

/* ==== Threads ================================================================================= */

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
unsigned char *shim_dynamic_shared;

enum Doing { RUNS, AT_BARRIER, IN_WARP, RETURNED };

struct Thread {
    Fiber *fiber; /* NULL before it begins */
    uint3 index;
    unsigned number;
    Doing doing;
    bool followed; /* waited for the kernels in front of its own */
    int line; /* where it waits */
    shim_warp_kind kind;
    unsigned mask, source;
    uint64_t value, result;
};

struct Warp {
    unsigned exist, wait, returned; /* bits of lanes */
    unsigned char turns[32];        /* waits that ended, by the lowest lane of the mask */
};

struct Work {
    std::function<void()> thread;
    const void *kernel;
    dim3 grid, block;
    size_t shared;
    bool early; /* comes before those in front of it are over, unless it waits */
};

static const Work *work;
static Thread threads[1024], *now;
static Warp warps[32];
static Thread *ready[1024]; /* a ring of those that can run */
static unsigned ready_at, n_ready, n_threads, n_returned, n_at_barrier, n_barriers;
static int barrier_line;
static uint64_t order, random_state, n_threads_run, n_products;
static shim_lane lanes[2][1024]; /* in turns, so that one wait of the warp parts what it does next from what it did */
static unsigned char lane_turns[1024];
static shim_copies copies[1024];

static const char *const warp_names[] = {"__syncwarp", "a vote", "__shfl_sync", "__shfl_up_sync", "__shfl_down_sync",
                                         "__shfl_xor_sync"};

#ifdef SHIM_TSAN
static char block_begins, block_ends, fences, barriers[2], syncwarps[32][32][2];
#define ORDER_BEFORE(address) __tsan_release(address)
#define ORDER_AFTER(address) __tsan_acquire(address)
#else
#define ORDER_BEFORE(address) ((void)0)
#define ORDER_AFTER(address) ((void)0)
#endif

static uint64_t next_random(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

/* ---- Faults of a kernel ---------------------------------------------------------------------- */

static intptr_t load_offset(void) {
    intptr_t offset = 0;
    dl_iterate_phdr([](dl_phdr_info *info, size_t, void *p) { return *(intptr_t *)p = (intptr_t)info->dlpi_addr, 1; },
                    &offset);
    return offset;
}

/* The name of a function as the program's symbol table has it, static ones among them. */
static std::string symbol_at(const void *address) {
    std::string name = "?";
    struct stat about;
    int file = open("/proc/self/exe", O_RDONLY);
    if (file < 0 || fstat(file, &about) != 0) {
        return name;
    }
    const char *bytes = (const char *)mmap(nullptr, (size_t)about.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (bytes == MAP_FAILED) {
        return name;
    }
    const Elf64_Ehdr *header = (const Elf64_Ehdr *)bytes;
    const Elf64_Shdr *sections = (const Elf64_Shdr *)(bytes + header->e_shoff);
    uintptr_t wanted = (uintptr_t)address - (uintptr_t)load_offset();
    for (int i = 0; i < header->e_shnum; i++) {
        const Elf64_Sym *symbols = (const Elf64_Sym *)(bytes + sections[i].sh_offset);
        size_t n = sections[i].sh_type == SHT_SYMTAB ? sections[i].sh_size / sizeof *symbols : 0;
        for (size_t j = 0; j < n; j++) {
            if (symbols[j].st_shndx != SHN_UNDEF && ELF64_ST_TYPE(symbols[j].st_info) == STT_FUNC &&
                symbols[j].st_value == wanted) {
                name = bytes + sections[sections[i].sh_link].sh_offset + symbols[j].st_name;
            }
        }
    }
    munmap((void *)(uintptr_t)bytes, (size_t)about.st_size);
    int status = 0;
    char *plain = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
    if (plain != nullptr) {
        name = plain;
        free(plain);
    }
    return name;
}

static bool same_wait(const Thread *a, const Thread *b) {
    return a->doing == b->doing && (a->doing == RETURNED || a->doing == RUNS || a->line == b->line) &&
           (a->doing != IN_WARP || (a->kind == b->kind && a->mask == b->mask));
}

/* What every thread of the block does, neighbours that do the same in one line. */
static void print_threads(void) {
    for (unsigned i = 0, end; i < n_threads; i = end) {
        const Thread *t = &threads[i];
        for (end = i + 1; end < n_threads && same_wait(t, &threads[end]); end++) {
        }
        fprintf(stderr, "    threads %u to %u ", i, end - 1);
        switch (t->doing) {
        case RUNS: fprintf(stderr, "%s\n", t == now ? "run" : "can run"); break;
        case AT_BARRIER: fprintf(stderr, "wait at __syncthreads, line %d\n", t->line); break;
        case IN_WARP:
            fprintf(stderr, "wait in %s of mask %08x, line %d\n", warp_names[t->kind], t->mask, t->line);
            break;
        case RETURNED: fprintf(stderr, "returned\n"); break;
        }
    }
}

[[noreturn]] static void fault(const char *what) {
    fprintf(stderr, "shim: kernel %s, block (%u, %u, %u), thread %u = (%u, %u, %u): %s\n",
            symbol_at(work->kernel).c_str(), blockIdx.x, blockIdx.y, blockIdx.z, now->number, threadIdx.x, threadIdx.y,
            threadIdx.z, what);
    print_threads();
    fflush(stderr);
    abort();
}

/* ---- Who runs next --------------------------------------------------------------------------- */

static void make_ready(Thread *t) {
    t->doing = RUNS;
    ready[(ready_at + n_ready++) % 1024] = t;
}

static Thread *in_order(unsigned i, unsigned n) {
    return &threads[order == 1 ? n - 1 - i : i];
}

/* NULL if no thread can run. */
static Thread *take_ready(void) {
    if (n_ready == 0) {
        return nullptr;
    }
    if (order > 1) {
        Thread **chosen = &ready[(ready_at + next_random() % n_ready) % 1024], *other = *chosen;
        *chosen = ready[ready_at];
        ready[ready_at] = other;
    }
    now = ready[ready_at];
    ready_at = (ready_at + 1) % 1024;
    n_ready--;
    threadIdx = now->index;
    return now;
}

/* The stack that t goes on with, or begins on. */
static Fiber *fiber_for(Thread *t) {
    Fiber *f = t->fiber;
    if (f != nullptr) {
        return f;
    }
#ifdef SHIM_TSAN
    return fiber_of[t->number];
#else
    if (free_fibers == nullptr) {
        return new_fiber();
    }
    f = free_fibers;
    free_fibers = f->next_free;
    return f;
#endif
}

/* Until somebody makes t ready. */
static void wait(Thread *t) {
    t->fiber = running;
    Thread *next = take_ready();
    if (next == nullptr) {
        fault("no thread of the block can go on");
    }
    if (next != t) {
        switch_to(fiber_for(next));
    }
}

/* What a fiber runs, for ever: threads that begin. */
static void run_threads(void) {
    arrive(nullptr);
    for (;;) {
        ORDER_AFTER(&block_begins);
        work->thread();
        ORDER_BEFORE(&block_ends);
        if (!now->followed) {
            fault("a kernel that may come early did not wait for those in front of it");
        }
        now->doing = RETURNED;
        warps[now->number / 32].returned |= 1u << now->number % 32;
        n_returned++;
        Thread *next = take_ready();
        if (next == nullptr && n_returned < n_threads) {
            fault("returned while others wait, and none can go on");
        }
#ifndef SHIM_TSAN
        if (next != nullptr && next->fiber == nullptr) {
            continue;
        }
        running->next_free = free_fibers;
        free_fibers = running;
#endif
        switch_to(next != nullptr ? fiber_for(next) : &host_fiber);
    }
}

static void run_block(void) {
    memset(warps, 0, sizeof warps);
    n_returned = n_at_barrier = n_ready = 0;
    if (work->shared > 0) {
        memset(shim_dynamic_shared, 0xFF, work->shared);
    }
    for (unsigned i = 0; i < n_threads; i++) {
        Thread *t = &threads[i];
        t->fiber = nullptr;
        t->number = i;
        copies[i].n = lane_turns[i] = 0;
        t->followed = !work->early;
        t->index = uint3{i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
        warps[i / 32].exist |= 1u << i % 32;
    }
    for (unsigned i = 0; i < n_threads; i++) {
        make_ready(in_order(i, n_threads));
    }
    ORDER_BEFORE(&block_begins);
    switch_to(fiber_for(take_ready()));
    ORDER_AFTER(&block_ends);
    n_threads_run += n_threads;
}

static void run_kernel(const Work *kernel) {
    work = kernel;
    gridDim = kernel->grid;
    blockDim = kernel->block;
    n_threads = blockDim.x * blockDim.y * blockDim.z;
    uint64_t n = (uint64_t)gridDim.x * gridDim.y * gridDim.z;
    std::vector<uint64_t> shuffled(order > 1 ? n : 0);
    for (uint64_t i = 0; i < shuffled.size(); i++) {
        uint64_t j = next_random() % (i + 1);
        shuffled[i] = shuffled[j];
        shuffled[j] = i;
    }
    shim_dynamic_shared = (unsigned char *)malloc(kernel->shared);
    running = &host_fiber;
#ifdef SHIM_TSAN
    host_fiber.tsan = __tsan_get_current_fiber();
    for (unsigned i = 0; i < n_threads; i++) { /* here, as what makes a fiber is ordered before what the fiber does */
        fiber_of[i] = fiber_of[i] != nullptr ? fiber_of[i] : new_fiber();
    }
#endif
    for (uint64_t i = 0; i < n; i++) {
        uint64_t b = order == 0 ? i : order == 1 ? n - 1 - i : shuffled[i];
        blockIdx = uint3{(unsigned)(b % gridDim.x), (unsigned)(b / gridDim.x % gridDim.y),
                         (unsigned)(b / gridDim.x / gridDim.y)};
        run_block();
    }
    free(shim_dynamic_shared);
    shim_dynamic_shared = nullptr;
    now = nullptr;
}

/* ---- What threads call ----------------------------------------------------------------------- */

static void check_in_kernel(const char *what) {
    if (now == nullptr) {
        fprintf(stderr, "shim: %s outside of a kernel\n", what);
        abort();
    }
}

void shim_barrier(int line) {
    check_in_kernel("__syncthreads");
    Thread *self = now;
    self->doing = AT_BARRIER;
    self->line = line;
    if (n_at_barrier > 0 && barrier_line != line) {
        fault("threads of a block wait at different __syncthreads");
    }
    barrier_line = line;
    unsigned parity = n_barriers % 2;
    ORDER_BEFORE(&barriers[parity]);
    if (++n_at_barrier == n_threads) {
        n_at_barrier = 0;
        n_barriers++;
        for (unsigned i = 0; i < n_threads; i++) {
            make_ready(in_order(i, n_threads));
        }
    }
    wait(self);
    ORDER_AFTER(&barriers[parity]);
    (void)parity;
}

/* The lane that a shuffle reads, after the PTX instruction shfl: its own if the one meant is not of the segment. */
static unsigned source_lane(shim_warp_kind kind, unsigned lane, unsigned operand, unsigned width) {
    unsigned first = lane & ~(width - 1), last = first | (width - 1), b = operand % 32;
    switch (kind) {
    case SHIM_SHFL: return first | (b & (width - 1));
    case SHIM_SHFL_UP: return lane < first + b ? lane : lane - b;
    case SHIM_SHFL_DOWN: return lane + b > last ? lane : lane + b;
    case SHIM_SHFL_XOR: return (lane ^ b) > last ? lane : lane ^ b;
    default: return lane;
    }
}

static void check_warp(const Warp *w, const Thread *self, unsigned width) {
    unsigned lane = self->number % 32;
    if (width == 0 || width > 32 || (width & (width - 1)) != 0) {
        fault("the width of a shuffle is not 1, 2, 4, 8, 16 or 32");
    }
    if ((self->mask >> lane & 1) == 0) {
        fault("the mask does not name the lane that calls");
    }
    if ((self->mask & ~w->exist) != 0) {
        fault("the mask names a lane that the block does not have");
    }
    if ((self->mask & w->returned) != 0) {
        fault("the mask names a lane that has returned");
    }
    if ((self->mask >> self->source & 1) == 0) {
        fault("a shuffle reads a lane that the mask does not name");
    }
}

/* Whether all lanes of the mask have come: with the same mask, and then to the same place. */
static bool warp_complete(const Warp *w, const Thread *self) {
    if ((w->wait & self->mask) != self->mask) {
        return false;
    }
    const Thread *first = self - self->number % 32;
    bool complete = true;
    for (unsigned lane = 0; lane < 32; lane++) {
        const Thread *t = first + lane;
        if ((self->mask >> lane & 1) == 0) {
            continue;
        }
        if (t->mask != self->mask) {
            complete = false;
        } else if (t->line != self->line || t->kind != self->kind) {
            fault("lanes of the same mask meet in different places");
        }
    }
    return complete;
}

static void warp_finish(Warp *w, const Thread *self) {
    Thread *first = &threads[self->number / 32 * 32];
    uint64_t votes = 0;
    for (unsigned lane = 0; lane < 32; lane++) {
        votes |= (self->mask >> lane & 1) != 0 && first[lane].value != 0 ? (uint64_t)1 << lane : 0;
    }
    for (unsigned i = 0; i < 32; i++) {
        unsigned lane = order == 1 ? 31 - i : i;
        Thread *t = &first[lane];
        if ((self->mask >> lane & 1) != 0) {
            t->result = t->kind == SHIM_VOTE ? votes : first[t->source].value;
            make_ready(t);
        }
    }
    w->wait &= ~self->mask;
    w->turns[__builtin_ctz(self->mask)]++;
}

uint64_t shim_warp(shim_warp_kind kind, unsigned mask, uint64_t value, unsigned operand, int width, int line) {
    check_in_kernel(warp_names[kind]);
    Thread *self = now;
    unsigned lane = self->number % 32;
    Warp *w = &warps[self->number / 32];
    self->kind = kind;
    self->mask = mask;
    self->value = value;
    self->line = line;
    self->source = source_lane(kind, lane, operand, (unsigned)width);
    check_warp(w, self, (unsigned)width);
    self->doing = IN_WARP;
    w->wait |= 1u << lane;
#ifdef SHIM_TSAN
    unsigned lowest = (unsigned)__builtin_ctz(mask);
    char *ordered = &syncwarps[self->number / 32][lowest][w->turns[lowest] % 2];
    if (kind == SHIM_SYNCWARP) {
        ORDER_BEFORE(ordered);
    }
#endif
    if (warp_complete(w, self)) {
        warp_finish(w, self);
    }
    wait(self);
#ifdef SHIM_TSAN
    if (kind == SHIM_SYNCWARP) {
        ORDER_AFTER(ordered);
    }
#endif
    return self->result;
}

unsigned shim_active_mask(void) {
    check_in_kernel("__activemask");
    const Warp *w = &warps[now->number / 32];
    return w->exist & ~w->returned;
}

shim_lane *shim_warp_lanes(void) {
    check_in_kernel("what a warp does together");
    return &lanes[lane_turns[now->number]++ % 2][now->number / 32 * 32];
}

shim_lane *shim_warp_product(void) {
    shim_lane *of_warp = shim_warp_lanes();
    n_products += now->number % 32 == 0;
    return of_warp;
}

shim_copies *shim_thread_copies(const void *to, const void *from, size_t n) {
    check_in_kernel("a copy to shared memory");
    shim_copies *pending = &copies[now->number];
    if (n > 0 && ((uintptr_t)to | (uintptr_t)from) % n != 0) {
        fault("a copy to shared memory is not aligned to its bytes");
    }
    if (n > 0 && pending->n == sizeof pending->copies / sizeof pending->copies[0]) {
        fault("too many copies to shared memory that nobody waited for");
    }
    return pending;
}

void fl_follow(void) {
    check_in_kernel("fl_follow");
    now->followed = true;
}

void shim_fence(void) {
    check_in_kernel("__threadfence");
    ORDER_BEFORE(&fences);
    ORDER_AFTER(&fences);
}

/* ==== The runtime ============================================================================= */

struct Capture;

struct Record { /* of an event */
    CUstream_st *stream;
    std::shared_ptr<Capture> capture; /* set: recorded while the stream was captured */
    uint64_t number;                  /* of the operation, or the nodes captured before it */
    bool done;
    std::chrono::steady_clock::time_point at;
};

enum class Kind { kernel, copy, fill, record, wait };

struct Op {
    Kind kind;
    uint64_t number; /* of all operations, in the order in which they were handed in */
    std::shared_ptr<const Work> work;
    std::shared_ptr<Record> record;
    cudaMemcpyKind way;
    char *to;
    const char *from;
    size_t to_pitch, from_pitch, width, height;
    int value;
};

typedef std::vector<Op> Nodes;

struct Branch {
    size_t end;  /* nodes that had been captured when its last one was */
    bool joined; /* a stream of the capture waits for that */
};

struct Capture {
    CUstream_st *origin;
    cudaStreamCaptureMode mode;
    std::thread::id thread;
    bool invalid;
    Nodes nodes;
    std::map<CUstream_st *, Branch> branches; /* streams that joined by waiting for an event of it */
};

struct CUstream_st {
    int device, priority;
    bool blocking;
    std::deque<Op> ops;
    std::shared_ptr<Capture> capture;
};

struct CUevent_st {
    bool timed;
    std::shared_ptr<Record> record;
};

struct CUgraph_st {
    Nodes nodes;
};

struct CUgraphExec_st {
    std::shared_ptr<const Nodes> nodes; /* a launch keeps those it was made with */
};

struct Allocation {
    size_t n;
    int device; /* -1: pinned host memory */
};

struct Runtime {
    std::mutex lock;
    shim_counts counts;
    int n_devices, n_processors, major, minor, compiled;
    uint64_t memory;
    cudaError_t sticky, fault;
    uint64_t fault_at, fault_seen;
    int fault_kind; /* a shim_call, or -1 for all */
    bool fault_forever;
    uint64_t n_ops;
    int n_draining;
    std::map<char *, Allocation> blocks;
    std::map<int, uint64_t> used; /* by device */
    std::map<const void *, int> shared_limits;
    std::map<int, CUstream_st *> null_streams;
    std::set<CUstream_st *> streams;
    std::set<CUevent_st *> events;
    std::set<CUgraph_st *> graphs;
    std::set<CUgraphExec_st *> execs;
    std::set<std::shared_ptr<Capture>> captures;
};

#define SHARED_DEFAULT 49152
#define SHARED_MAX 232448

static void set_defaults(Runtime *r) {
    memset(&r->counts, 0, sizeof r->counts);
    r->n_devices = 1;
    r->n_processors = 4;
    r->major = 9;
    r->minor = r->compiled = 0;
    r->memory = (uint64_t)1 << 30;
    r->sticky = cudaSuccess;
    r->fault_at = 0;
    order = 0;
}

/* Never destroyed, so that threads that outlive main find it. */
static Runtime *runtime(void) {
    static Runtime *r = [] {
        Runtime *fresh = new Runtime();
        set_defaults(fresh);
        return fresh;
    }();
    return r;
}

static thread_local cudaError_t last_error;
static thread_local int current_device;

static bool is_sticky(cudaError_t e) {
    return e == cudaErrorECCUncorrectable || (e >= cudaErrorIllegalAddress && e <= cudaErrorLaunchFailure &&
                                              e != cudaErrorLaunchOutOfResources);
}

static void drop_work(Runtime *r) {
    for (CUstream_st *s : r->streams) {
        s->ops.clear();
    }
}

/* One call of the runtime: counted, and failing if a test wants it to. Holds the lock. */
struct Call {
    Runtime *r;
    std::unique_lock<std::mutex> held;
    cudaError_t error; /* that the call must give, doing nothing, or only releasing */

    explicit Call(shim_call kind) : r(runtime()), held(r->lock), error(r->sticky) {
        r->counts.n_calls++;
        r->counts.calls[kind]++;
        if (error == cudaSuccess && r->fault_at > 0 && (r->fault_kind < 0 || r->fault_kind == (int)kind)) {
            r->fault_seen++;
            if (r->fault_seen == r->fault_at || (r->fault_forever && r->fault_seen > r->fault_at)) {
                error = r->fault;
            }
        }
        r->counts.n_injected += error != cudaSuccess;
        if (is_sticky(error) && r->sticky == cudaSuccess) {
            r->sticky = error;
            drop_work(r);
        }
        if (error == cudaSuccess && r->n_devices == 0) {
            error = cudaErrorNoDevice;
        }
    }

    explicit operator bool() const {
        return error == cudaSuccess;
    }

    cudaError_t give(cudaError_t result = cudaSuccess) {
        result = error != cudaSuccess ? error : result;
        last_error = result != cudaSuccess ? result : last_error;
        return result;
    }
};

/* ---- Running what is queued ------------------------------------------------------------------ */

/* Device memory is open while work runs. */
static void open_memory(Runtime *r, bool open) {
#ifdef SHIM_ASAN
    for (auto &b : r->blocks) {
        if (b.second.device >= 0) {
            if (open) {
                ASAN_UNPOISON_MEMORY_REGION(b.first, b.second.n);
            } else {
                ASAN_POISON_MEMORY_REGION(b.first, b.second.n);
            }
        }
    }
#endif
    (void)r;
    (void)open;
}

static void drain(Runtime *r, CUstream_st *s, uint64_t before);

static void execute(Runtime *r, const Op &op) {
    switch (op.kind) {
    case Kind::kernel:
        run_kernel(op.work.get());
        break;
    case Kind::copy:
        for (size_t i = 0; i < op.height; i++) {
            memcpy(op.to + i * op.to_pitch, op.from + i * op.from_pitch, op.width);
        }
        break;
    case Kind::fill:
        memset(op.to, op.value, op.width);
        break;
    case Kind::record:
        op.record->done = true;
        op.record->at = std::chrono::steady_clock::now();
        break;
    case Kind::wait:
        if (!op.record->done) {
            drain(r, op.record->stream, op.record->number + 1);
        }
        break;
    }
}

static CUstream_st *null_stream(Runtime *r, int device) {
    CUstream_st *&s = r->null_streams[device];
    if (s == nullptr) {
        s = new CUstream_st();
        s->device = device;
        s->blocking = true;
        r->streams.insert(s);
    }
    return s;
}

/* The default stream and the streams that block with it are one sequence. */
static void drain_ordered(Runtime *r, CUstream_st *s, uint64_t before) {
    CUstream_st *null = null_stream(r, s->device);
    if (s == null) {
        for (CUstream_st *other : r->streams) {
            if (other != null && other->device == s->device && other->blocking) {
                drain(r, other, before);
            }
        }
    } else if (s->blocking) {
        drain(r, null, before);
    }
}

/* Runs the operations of a stream that were handed in before the one of that number. */
static void drain(Runtime *r, CUstream_st *s, uint64_t before) {
    if (r->n_draining++ == 0) {
        open_memory(r, true);
    }
    while (!s->ops.empty() && s->ops.front().number < before) {
        Op op = std::move(s->ops.front());
        s->ops.pop_front();
        drain_ordered(r, s, op.number);
        execute(r, op);
    }
    if (--r->n_draining == 0) {
        open_memory(r, false);
    }
}

static void drain_device(Runtime *r, int device) {
    for (CUstream_st *s : std::vector<CUstream_st *>(r->streams.begin(), r->streams.end())) {
        if (device < 0 || s->device == device) {
            drain(r, s, UINT64_MAX);
        }
    }
}

/* ---- Capture --------------------------------------------------------------------------------- */

static void invalidate(Capture *c) {
    c->invalid = true;
}

/* Calls that may not be made while a capture is under way; those it forbids them to are invalidated by them. */
static cudaError_t refuse_in_capture(Runtime *r) {
    cudaError_t e = cudaSuccess;
    for (auto &c : r->captures) {
        if (c->mode == cudaStreamCaptureModeGlobal ||
            (c->mode == cudaStreamCaptureModeThreadLocal && c->thread == std::this_thread::get_id())) {
            invalidate(c.get());
            e = cudaErrorStreamCaptureUnsupported;
        }
    }
    return e;
}

static cudaError_t refuse_captured(CUstream_st *s) {
    if (s->capture == nullptr) {
        return cudaSuccess;
    }
    invalidate(s->capture.get());
    return cudaErrorStreamCaptureUnsupported;
}

/* The legacy stream would wait for streams that are captured. */
static cudaError_t refuse_implicit(Runtime *r, CUstream_st *s) {
    if (s != null_stream(r, s->device)) {
        return cudaSuccess;
    }
    for (auto &c : r->captures) {
        if (c->origin->blocking) {
            invalidate(c.get());
            return cudaErrorStreamCaptureImplicit;
        }
    }
    return cudaSuccess;
}

/* NULL for a handle that is not live. */
static CUstream_st *find_stream(Runtime *r, cudaStream_t s) {
    if (s == nullptr || s == cudaStreamLegacy) {
        return null_stream(r, current_device);
    }
    return r->streams.count(s) != 0 ? s : nullptr;
}

static void count_op(shim_counts *c, const Op &op, bool graph) {
    uint64_t n = (uint64_t)op.width * op.height;
    if (op.kind == Kind::kernel) {
        (graph ? c->graph_kernels : c->kernels)++;
    } else if (op.kind == Kind::fill) {
        c->fills++;
        c->bytes_filled += op.width;
    } else if (op.kind == Kind::copy && op.way == cudaMemcpyHostToDevice) {
        c->copies_in++;
        c->bytes_in += n;
    } else if (op.kind == Kind::copy && op.way == cudaMemcpyDeviceToHost) {
        c->copies_out++;
        c->bytes_out += n;
    } else if (op.kind == Kind::copy && op.way == cudaMemcpyDeviceToDevice) {
        c->copies_on++;
        c->bytes_on += n;
    }
}

static void queue(Runtime *r, CUstream_st *s, Op op, bool graph) {
    count_op(&r->counts, op, graph);
    op.number = r->n_ops++;
    if (op.kind == Kind::record) {
        op.record->number = op.number;
    }
    s->ops.push_back(std::move(op));
}

/* Into the graph that the stream is captured into, or its queue. */
static cudaError_t hand_in(Runtime *r, CUstream_st *s, const Op &op) {
    if (s->capture != nullptr) {
        Capture *c = s->capture.get();
        if (c->invalid) {
            return cudaErrorStreamCaptureInvalidated;
        }
        c->nodes.push_back(op);
        if (s != c->origin) {
            c->branches[s] = Branch{c->nodes.size(), false};
        }
        return cudaSuccess;
    }
    cudaError_t e = refuse_implicit(r, s);
    if (e == cudaSuccess) {
        queue(r, s, op, false);
    }
    return e;
}

/* ---- Errors and devices ---------------------------------------------------------------------- */

extern "C" const char *cudaGetErrorName(cudaError_t error) {
    switch ((int)error) {
#define NAME(name, number, text) \
    case number: return #name;
        SHIM_ERRORS(NAME)
#undef NAME
    default: return "unrecognized error code";
    }
}

extern "C" const char *cudaGetErrorString(cudaError_t error) {
    switch ((int)error) {
#define TEXT(name, number, text) \
    case number: return text;
        SHIM_ERRORS(TEXT)
#undef TEXT
    default: return "unrecognized error code";
    }
}

extern "C" cudaError_t cudaPeekAtLastError(void) {
    Runtime *r = runtime();
    std::lock_guard<std::mutex> held(r->lock);
    return r->sticky != cudaSuccess ? r->sticky : last_error;
}

extern "C" cudaError_t cudaGetLastError(void) {
    cudaError_t e = cudaPeekAtLastError();
    last_error = cudaSuccess;
    return e;
}

extern "C" cudaError_t cudaGetDeviceCount(int *n) {
    Call call(SHIM_cudaGetDeviceCount);
    *n = call ? call.r->n_devices : 0;
    return call.give();
}

static bool is_device(const Runtime *r, int device) {
    return device >= 0 && device < r->n_devices;
}

extern "C" cudaError_t cudaSetDevice(int device) {
    Call call(SHIM_cudaSetDevice);
    if (!call || !is_device(call.r, device)) {
        return call.give(cudaErrorInvalidDevice);
    }
    current_device = device;
    return call.give();
}

extern "C" cudaError_t cudaGetDevice(int *device) {
    Call call(SHIM_cudaGetDevice);
    if (call) {
        *device = current_device;
    }
    return call.give();
}

static int attribute_value(const Runtime *r, cudaDeviceAttr attribute) {
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: return 1024;
    case cudaDevAttrMaxBlockDimX: return 1024;
    case cudaDevAttrMaxBlockDimY: return 1024;
    case cudaDevAttrMaxBlockDimZ: return 64;
    case cudaDevAttrMaxGridDimX: return INT32_MAX;
    case cudaDevAttrMaxGridDimY: return 65535;
    case cudaDevAttrMaxGridDimZ: return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock: return SHARED_DEFAULT;
    case cudaDevAttrWarpSize: return warpSize;
    case cudaDevAttrMaxRegistersPerBlock: return 65536;
    case cudaDevAttrMultiProcessorCount: return r->n_processors;
    case cudaDevAttrIntegrated: return 0;
    case cudaDevAttrCanMapHostMemory: return 1;
    case cudaDevAttrComputeMode: return 0;
    case cudaDevAttrConcurrentKernels: return 1;
    case cudaDevAttrL2CacheSize: return 50 << 20;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return 2048;
    case cudaDevAttrAsyncEngineCount: return 3;
    case cudaDevAttrUnifiedAddressing: return 1;
    case cudaDevAttrComputeCapabilityMajor: return r->major;
    case cudaDevAttrComputeCapabilityMinor: return r->minor;
    case cudaDevAttrStreamPrioritiesSupported: return 1;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return SHARED_MAX + 1024;
    case cudaDevAttrManagedMemory: return 0;
    case cudaDevAttrCooperativeLaunch: return 0;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return SHARED_MAX;
    }
    return -1;
}

extern "C" cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    Call call(SHIM_cudaDeviceGetAttribute);
    if (!call || !is_device(call.r, device)) {
        return call.give(cudaErrorInvalidDevice);
    }
    int v = attribute_value(call.r, attribute);
    if (v < 0) {
        return call.give(cudaErrorInvalidValue);
    }
    *value = v;
    return call.give();
}

extern "C" cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    Call call(SHIM_cudaGetDeviceProperties);
    if (!call || !is_device(call.r, device)) {
        return call.give(cudaErrorInvalidDevice);
    }
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "Host shim %d", device);
    p->totalGlobalMem = (size_t)call.r->memory;
    p->sharedMemPerBlock = SHARED_DEFAULT;
    p->sharedMemPerBlockOptin = SHARED_MAX;
    p->sharedMemPerMultiprocessor = SHARED_MAX + 1024;
    p->regsPerBlock = 65536;
    p->warpSize = warpSize;
    p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = INT32_MAX;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->major = call.r->major;
    p->minor = call.r->minor;
    p->multiProcessorCount = call.r->n_processors;
    p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = p->streamPrioritiesSupported = 1;
    p->asyncEngineCount = 3;
    p->l2CacheSize = 50 << 20;
    p->maxThreadsPerMultiProcessor = 2048;
    return call.give();
}

extern "C" cudaError_t cudaDriverGetVersion(int *version) {
    Call call(SHIM_cudaDriverGetVersion);
    *version = call ? CUDART_VERSION : 0;
    return call.give();
}

extern "C" cudaError_t cudaRuntimeGetVersion(int *version) {
    Call call(SHIM_cudaRuntimeGetVersion);
    *version = CUDART_VERSION;
    return call.give();
}

extern "C" cudaError_t cudaDeviceSynchronize(void) {
    Call call(SHIM_cudaDeviceSynchronize);
    if (!call) {
        return call.give();
    }
    cudaError_t e = refuse_in_capture(call.r);
    if (e == cudaSuccess) {
        call.r->counts.synchronisations++;
        drain_device(call.r, current_device);
    }
    return call.give(e);
}

/* ---- Memory ---------------------------------------------------------------------------------- */

extern "C" cudaError_t cudaMemGetInfo(size_t *n_free, size_t *total) {
    Call call(SHIM_cudaMemGetInfo);
    if (call) {
        uint64_t used = call.r->used[current_device];
        *total = (size_t)call.r->memory;
        *n_free = used < call.r->memory ? (size_t)(call.r->memory - used) : 0;
    }
    return call.give();
}

/* Of the exact size, so that AddressSanitizer sees a step over its end. */
static void *new_block(Runtime *r, size_t n, int device) {
    void *p = nullptr;
    if (posix_memalign(&p, 256, n) != 0) {
        return nullptr;
    }
    memset(p, 0xFF, n);
    r->blocks[(char *)p] = Allocation{n, device};
    return p;
}

cudaError_t shim_malloc(void **p, size_t n) {
    Call call(SHIM_cudaMalloc);
    Runtime *r = call.r;
    if (!call) {
        return call.give();
    }
    cudaError_t e = refuse_in_capture(r);
    if (e != cudaSuccess) {
        return call.give(e);
    }
    uint64_t &used = r->used[current_device];
    *p = nullptr;
    if (n == 0) {
        return call.give();
    }
    if (used > r->memory || n > r->memory - used || (*p = new_block(r, n, current_device)) == nullptr) {
        return call.give(cudaErrorMemoryAllocation);
    }
    used += n;
    r->counts.allocations++;
    r->counts.live_allocations++;
    r->counts.live_bytes += n;
    r->counts.peak_bytes = max((unsigned long)r->counts.peak_bytes, (unsigned long)r->counts.live_bytes);
    open_memory(r, false);
    return call.give();
}

cudaError_t shim_host_alloc(void **p, size_t n) {
    Call call(SHIM_cudaHostAlloc);
    Runtime *r = call.r;
    if (!call) {
        return call.give();
    }
    cudaError_t e = refuse_in_capture(r);
    *p = nullptr;
    if (e != cudaSuccess || n == 0) {
        return call.give(e);
    }
    if ((*p = new_block(r, n, -1)) == nullptr) {
        return call.give(cudaErrorMemoryAllocation);
    }
    r->counts.host_allocations++;
    r->counts.live_host_allocations++;
    r->counts.live_host_bytes += n;
    return call.give();
}

static void forget_block(Runtime *r, std::map<char *, Allocation>::iterator b) {
    if (b->second.device >= 0) {
        r->used[b->second.device] -= b->second.n;
        r->counts.live_allocations--;
        r->counts.live_bytes -= b->second.n;
    } else {
        r->counts.live_host_allocations--;
        r->counts.live_host_bytes -= b->second.n;
    }
#ifdef SHIM_ASAN
    ASAN_UNPOISON_MEMORY_REGION(b->first, b->second.n);
#endif
    free(b->first);
    r->blocks.erase(b);
}

/* Waits for all work, as the real ones do. */
static cudaError_t free_block(Call *call, void *p, bool host) {
    Runtime *r = call->r;
    if (p == nullptr) {
        return call->give();
    }
    cudaError_t e = *call ? refuse_in_capture(r) : cudaSuccess;
    if (e != cudaSuccess) {
        return call->give(e);
    }
    auto b = r->blocks.find((char *)p);
    if (b == r->blocks.end() || (b->second.device < 0) != host) {
        r->counts.bad_frees++;
        return call->give(cudaErrorInvalidValue);
    }
    drain_device(r, -1);
    forget_block(r, b);
    return call->give();
}

extern "C" cudaError_t cudaFree(void *p) {
    Call call(SHIM_cudaFree);
    return free_block(&call, p, false);
}

extern "C" cudaError_t cudaFreeHost(void *p) {
    Call call(SHIM_cudaFreeHost);
    return free_block(&call, p, true);
}

/* The block in which p lies; NULL for memory of others. */
static const std::pair<char *const, Allocation> *block_at(const Runtime *r, const void *p) {
    auto b = r->blocks.upper_bound((char *)(uintptr_t)p);
    if (b == r->blocks.begin()) {
        return nullptr;
    }
    --b;
    return (uintptr_t)p - (uintptr_t)b->first < b->second.n ? &*b : nullptr;
}

static bool on_device(const Runtime *r, const void *p) {
    auto b = block_at(r, p);
    return b != nullptr && b->second.device >= 0;
}

static bool is_range(const Runtime *r, const void *p, size_t n, bool device) {
    auto b = block_at(r, p);
    if (b == nullptr) {
        return !device && p != nullptr;
    }
    return (b->second.device >= 0) == device && n <= b->second.n - (size_t)((uintptr_t)p - (uintptr_t)b->first);
}

cudaError_t shim_host_get_device_pointer(void **p, void *host) {
    Call call(SHIM_cudaHostGetDevicePointer);
    if (!call || block_at(call.r, host) == nullptr || on_device(call.r, host)) {
        return call.give(cudaErrorInvalidValue);
    }
    *p = host;
    return call.give();
}

/* Checks the copy that op describes and completes its way. */
static cudaError_t check_copy(const Runtime *r, Op *op) {
    if ((int)op->way < 0 || op->way > cudaMemcpyDefault) {
        return cudaErrorInvalidMemcpyDirection;
    }
    if (op->width > op->to_pitch || op->width > op->from_pitch) {
        return cudaErrorInvalidPitchValue;
    }
    if (op->way == cudaMemcpyDefault) {
        op->way = (cudaMemcpyKind)(on_device(r, op->from) * 2 + on_device(r, op->to));
    }
    size_t to_n = 0, from_n = 0;
    if (__builtin_mul_overflow(op->height - 1, op->to_pitch, &to_n) || __builtin_add_overflow(to_n, op->width, &to_n) ||
        __builtin_mul_overflow(op->height - 1, op->from_pitch, &from_n) ||
        __builtin_add_overflow(from_n, op->width, &from_n)) {
        return cudaErrorInvalidValue;
    }
    bool to_device = op->way == cudaMemcpyHostToDevice || op->way == cudaMemcpyDeviceToDevice;
    bool from_device = op->way == cudaMemcpyDeviceToHost || op->way == cudaMemcpyDeviceToDevice;
    return is_range(r, op->to, to_n, to_device) && is_range(r, op->from, from_n, from_device) ? cudaSuccess
                                                                                             : cudaErrorInvalidValue;
}

static cudaError_t copy(Runtime *r, CUstream_st *s, void *to, size_t to_pitch, const void *from, size_t from_pitch,
                        size_t width, size_t height, cudaMemcpyKind way) {
    Op op = {};
    op.kind = Kind::copy;
    op.way = way;
    op.to = (char *)to;
    op.from = (const char *)from;
    op.to_pitch = to_pitch;
    op.from_pitch = from_pitch;
    op.width = width;
    op.height = height;
    if (s == nullptr) {
        return cudaErrorInvalidResourceHandle;
    }
    if (width == 0 || height == 0) {
        return cudaSuccess;
    }
    cudaError_t e = check_copy(r, &op);
    return e != cudaSuccess ? e : hand_in(r, s, op);
}

extern "C" cudaError_t cudaMemcpy(void *to, const void *from, size_t n, cudaMemcpyKind kind) {
    Call call(SHIM_cudaMemcpy);
    if (!call) {
        return call.give();
    }
    CUstream_st *s = null_stream(call.r, current_device);
    cudaError_t e = refuse_in_capture(call.r);
    if (e == cudaSuccess) {
        e = copy(call.r, s, to, n, from, n, n, 1, kind);
    }
    if (e == cudaSuccess) {
        call.r->counts.synchronisations++;
        drain(call.r, s, UINT64_MAX);
    }
    return call.give(e);
}

extern "C" cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind, cudaStream_t stream) {
    Call call(SHIM_cudaMemcpyAsync);
    return call.give(call ? copy(call.r, find_stream(call.r, stream), to, n, from, n, n, 1, kind) : cudaSuccess);
}

extern "C" cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                                         size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
    Call call(SHIM_cudaMemcpy2DAsync);
    CUstream_st *s = find_stream(call.r, stream);
    return call.give(call ? copy(call.r, s, to, to_pitch, from, from_pitch, width, height, kind) : cudaSuccess);
}

extern "C" cudaError_t cudaMemsetAsync(void *to, int value, size_t n, cudaStream_t stream) {
    Call call(SHIM_cudaMemsetAsync);
    if (!call) {
        return call.give();
    }
    CUstream_st *s = find_stream(call.r, stream);
    Op op = {};
    op.kind = Kind::fill;
    op.to = (char *)to;
    op.value = value;
    op.width = n;
    if (s == nullptr) {
        return call.give(cudaErrorInvalidResourceHandle);
    }
    if (n == 0) {
        return call.give();
    }
    return call.give(is_range(call.r, to, n, true) ? hand_in(call.r, s, op) : cudaErrorInvalidValue);
}

/* ---- Streams --------------------------------------------------------------------------------- */

extern "C" cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    Call call(SHIM_cudaDeviceGetStreamPriorityRange);
    *least = 0;
    *greatest = call ? -5 : 0;
    return call.give();
}

static cudaError_t create_stream(Call *call, cudaStream_t *stream, unsigned flags, int priority) {
    if (!*call || (flags & ~cudaStreamNonBlocking) != 0) {
        return call->give(cudaErrorInvalidValue);
    }
    CUstream_st *s = new CUstream_st();
    s->device = current_device;
    s->priority = max(min(priority, 0), -5);
    s->blocking = (flags & cudaStreamNonBlocking) == 0;
    call->r->streams.insert(s);
    call->r->counts.live_streams++;
    *stream = s;
    return call->give();
}

extern "C" cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    Call call(SHIM_cudaStreamCreateWithFlags);
    return create_stream(&call, stream, flags, 0);
}

extern "C" cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    Call call(SHIM_cudaStreamCreateWithPriority);
    return create_stream(&call, stream, flags, priority);
}

static void end_capture(Runtime *r, std::shared_ptr<Capture> c) {
    for (CUstream_st *s : r->streams) {
        if (s->capture == c) {
            s->capture = nullptr;
        }
    }
    r->captures.erase(c);
}

extern "C" cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    Call call(SHIM_cudaStreamDestroy);
    Runtime *r = call.r;
    if (r->streams.count(stream) == 0 || null_stream(r, stream->device) == stream) {
        r->counts.bad_frees++;
        return call.give(cudaErrorInvalidResourceHandle);
    }
    if (stream->capture != nullptr) {
        end_capture(r, stream->capture);
    }
    drain(r, stream, UINT64_MAX);
    r->streams.erase(stream);
    r->counts.live_streams--;
    delete stream;
    return call.give();
}

/* Whether anything has to run before the stream is done. */
static bool has_work(Runtime *r, CUstream_st *s) {
    bool any = !s->ops.empty(), is_null = s == null_stream(r, s->device);
    for (CUstream_st *other : r->streams) {
        any = any || (is_null && other->device == s->device && other->blocking && !other->ops.empty());
    }
    return any;
}

/* The checks of synchronising and querying; the stream in *s. */
static cudaError_t check_wait(Runtime *r, cudaStream_t stream, CUstream_st **s) {
    *s = find_stream(r, stream);
    if (*s == nullptr) {
        return cudaErrorInvalidResourceHandle;
    }
    cudaError_t e = refuse_captured(*s);
    return e != cudaSuccess ? e : refuse_implicit(r, *s);
}

static void finish(Runtime *r, CUstream_st *s) {
    if (s == null_stream(r, s->device)) {
        drain_ordered(r, s, UINT64_MAX);
    }
    drain(r, s, UINT64_MAX);
}

extern "C" cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    Call call(SHIM_cudaStreamSynchronize);
    CUstream_st *s = nullptr;
    cudaError_t e = call ? check_wait(call.r, stream, &s) : call.error;
    if (e == cudaSuccess) {
        call.r->counts.synchronisations++;
        finish(call.r, s);
    }
    return call.give(e);
}

/* Not ready once, if there was work; the work then runs. */
extern "C" cudaError_t cudaStreamQuery(cudaStream_t stream) {
    Call call(SHIM_cudaStreamQuery);
    CUstream_st *s = nullptr;
    cudaError_t e = call ? check_wait(call.r, stream, &s) : call.error;
    if (e == cudaSuccess && has_work(call.r, s)) {
        finish(call.r, s);
        e = cudaErrorNotReady;
    }
    return call.give(e);
}

/* ---- Events ---------------------------------------------------------------------------------- */

extern "C" cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    Call call(SHIM_cudaEventCreateWithFlags);
    if (!call || (flags & ~(cudaEventBlockingSync | cudaEventDisableTiming)) != 0) {
        return call.give(cudaErrorInvalidValue);
    }
    CUevent_st *e = new CUevent_st();
    e->timed = (flags & cudaEventDisableTiming) == 0;
    call.r->events.insert(e);
    call.r->counts.live_events++;
    *event = e;
    return call.give();
}

/* A handle that is one of `all`, of which `live` are left; unknown: what the real one says then. */
template <class T>
static cudaError_t destroy(Call &call, std::set<T *> &all, T *handle, uint64_t &live, cudaError_t unknown) {
    if (all.erase(handle) == 0) {
        call.r->counts.bad_frees++;
        return call.give(unknown);
    }
    live--;
    delete handle;
    return call.give();
}

extern "C" cudaError_t cudaEventDestroy(cudaEvent_t event) {
    Call call(SHIM_cudaEventDestroy);
    return destroy(call, call.r->events, event, call.r->counts.live_events, cudaErrorInvalidResourceHandle);
}

extern "C" cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    Call call(SHIM_cudaEventRecord);
    Runtime *r = call.r;
    CUstream_st *s = call ? find_stream(r, stream) : nullptr;
    if (s == nullptr || r->events.count(event) == 0) {
        return call.give(cudaErrorInvalidResourceHandle);
    }
    auto record = std::make_shared<Record>();
    record->stream = s;
    record->capture = s->capture;
    cudaError_t e = cudaSuccess;
    if (s->capture != nullptr) {
        e = s->capture->invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
        record->number = s->capture->nodes.size();
    } else {
        Op op = {};
        op.kind = Kind::record;
        op.record = record;
        e = hand_in(r, s, op);
    }
    if (e == cudaSuccess) {
        event->record = record;
    }
    return call.give(e);
}

/* A wait for an event that was recorded in a captured stream: s joins the capture, or joins one of its branches. */
static cudaError_t wait_captured(Runtime *r, CUstream_st *s, const Record *record) {
    Capture *c = record->capture.get();
    if (r->captures.count(record->capture) == 0) {
        return cudaErrorCapturedEvent;
    }
    if (s->capture != nullptr && s->capture != record->capture) {
        invalidate(c);
        invalidate(s->capture.get());
        return cudaErrorStreamCaptureMerge;
    }
    if (c->invalid) {
        return cudaErrorStreamCaptureInvalidated;
    }
    if (s->capture == nullptr) {
        s->capture = record->capture;
        c->branches[s] = Branch{c->nodes.size(), false};
    }
    auto branch = c->branches.find(record->stream);
    if (record->stream != s && branch != c->branches.end() && branch->second.end <= record->number) {
        branch->second.joined = true;
    }
    return cudaSuccess;
}

extern "C" cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    (void)flags;
    Call call(SHIM_cudaStreamWaitEvent);
    Runtime *r = call.r;
    CUstream_st *s = call ? find_stream(r, stream) : nullptr;
    if (s == nullptr || r->events.count(event) == 0) {
        return call.give(cudaErrorInvalidResourceHandle);
    }
    if (event->record == nullptr) {
        return call.give();
    }
    if (event->record->capture != nullptr) {
        return call.give(wait_captured(r, s, event->record.get()));
    }
    if (s->capture != nullptr) {
        invalidate(s->capture.get());
        return call.give(cudaErrorStreamCaptureIsolation);
    }
    Op op = {};
    op.kind = Kind::wait;
    op.record = event->record;
    return call.give(hand_in(r, s, op));
}

static cudaError_t check_event(Runtime *r, cudaEvent_t event) {
    if (r->events.count(event) == 0) {
        return cudaErrorInvalidResourceHandle;
    }
    if (event->record != nullptr && event->record->capture != nullptr) {
        invalidate(event->record->capture.get());
        return cudaErrorCapturedEvent;
    }
    return cudaSuccess;
}

/* Whether the event had to be waited for. */
static bool finish_event(Runtime *r, const CUevent_st *event) {
    std::shared_ptr<Record> record = event->record;
    if (record == nullptr || record->done) {
        return false;
    }
    drain(r, record->stream, record->number + 1);
    return true;
}

extern "C" cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    Call call(SHIM_cudaEventSynchronize);
    cudaError_t e = call ? check_event(call.r, event) : call.error;
    if (e == cudaSuccess) {
        call.r->counts.synchronisations++;
        finish_event(call.r, event);
    }
    return call.give(e);
}

extern "C" cudaError_t cudaEventQuery(cudaEvent_t event) {
    Call call(SHIM_cudaEventQuery);
    cudaError_t e = call ? check_event(call.r, event) : call.error;
    e = e == cudaSuccess ? refuse_in_capture(call.r) : e;
    if (e == cudaSuccess && finish_event(call.r, event)) {
        e = cudaErrorNotReady;
    }
    return call.give(e);
}

extern "C" cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end) {
    Call call(SHIM_cudaEventElapsedTime);
    if (!call) {
        return call.give();
    }
    for (cudaEvent_t event : {begin, end}) {
        cudaError_t e = check_event(call.r, event);
        if (e == cudaSuccess && (!event->timed || event->record == nullptr)) {
            e = cudaErrorInvalidResourceHandle;
        }
        if (e == cudaSuccess && !event->record->done) {
            e = cudaErrorNotReady;
        }
        if (e != cudaSuccess) {
            return call.give(e);
        }
    }
    *milliseconds = std::chrono::duration<float, std::milli>(end->record->at - begin->record->at).count();
    return call.give();
}

/* ---- Graphs ---------------------------------------------------------------------------------- */

extern "C" cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    Call call(SHIM_cudaStreamBeginCapture);
    Runtime *r = call.r;
    if (!call) {
        return call.give();
    }
    CUstream_st *s = find_stream(r, stream);
    if (s == nullptr) {
        return call.give(cudaErrorInvalidResourceHandle);
    }
    if (s == null_stream(r, s->device)) {
        return call.give(cudaErrorStreamCaptureUnsupported);
    }
    if (s->capture != nullptr) {
        return call.give(cudaErrorIllegalState);
    }
    s->capture = std::make_shared<Capture>();
    s->capture->origin = s;
    s->capture->mode = mode;
    s->capture->thread = std::this_thread::get_id();
    r->captures.insert(s->capture);
    return call.give();
}

/* NULL with an error: the capture is over all the same, unless the call was wrong. */
static CUgraph_st *captured_graph(Runtime *r, const std::shared_ptr<Capture> &c, cudaError_t *e) {
    end_capture(r, c);
    bool joined = true;
    for (auto &branch : c->branches) {
        joined = joined && branch.second.joined;
    }
    *e = c->invalid ? cudaErrorStreamCaptureInvalidated : joined ? cudaSuccess : cudaErrorStreamCaptureUnjoined;
    if (*e != cudaSuccess) {
        return nullptr;
    }
    CUgraph_st *g = new CUgraph_st();
    g->nodes = std::move(c->nodes);
    return g;
}

extern "C" cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    Call call(SHIM_cudaStreamEndCapture);
    Runtime *r = call.r;
    CUstream_st *s = find_stream(r, stream);
    *graph = nullptr;
    if (s == nullptr) {
        return call.give(cudaErrorInvalidResourceHandle);
    }
    std::shared_ptr<Capture> c = s->capture;
    if (c == nullptr) {
        return call.give(cudaErrorIllegalState);
    }
    if (c->origin != s) {
        invalidate(c.get());
        return call.give(cudaErrorStreamCaptureUnmatched);
    }
    if (c->mode != cudaStreamCaptureModeRelaxed && c->thread != std::this_thread::get_id()) {
        return call.give(cudaErrorStreamCaptureWrongThread);
    }
    if (!call) {
        end_capture(r, c);
        return call.give();
    }
    cudaError_t e = cudaSuccess;
    *graph = captured_graph(r, c, &e);
    if (*graph != nullptr) {
        r->graphs.insert(*graph);
        r->counts.live_graphs++;
    }
    return call.give(e);
}

extern "C" cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    Call call(SHIM_cudaStreamIsCapturing);
    CUstream_st *s = call ? find_stream(call.r, stream) : nullptr;
    if (s == nullptr) {
        return call.give(cudaErrorInvalidResourceHandle);
    }
    *status = s->capture == nullptr ? cudaStreamCaptureStatusNone
              : s->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                    : cudaStreamCaptureStatusActive;
    return call.give();
}

extern "C" cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags) {
    (void)flags;
    Call call(SHIM_cudaGraphInstantiate);
    if (!call || call.r->graphs.count(graph) == 0) {
        return call.give(cudaErrorInvalidValue);
    }
    CUgraphExec_st *e = new CUgraphExec_st();
    e->nodes = std::make_shared<const Nodes>(graph->nodes);
    call.r->execs.insert(e);
    call.r->counts.live_execs++;
    *exec = e;
    return call.give();
}

/* The same nodes, each of the same kind, a copy in the same direction; a kernel may be another one. */
static cudaGraphExecUpdateResult compare_nodes(const Nodes &was, const Nodes &is) {
    if (was.size() != is.size()) {
        return cudaGraphExecUpdateErrorTopologyChanged;
    }
    for (size_t i = 0; i < is.size(); i++) {
        if (was[i].kind != is[i].kind) {
            return cudaGraphExecUpdateErrorNodeTypeChanged;
        }
        if (is[i].kind == Kind::copy && (was[i].way != is[i].way || (was[i].height > 1) != (is[i].height > 1))) {
            return cudaGraphExecUpdateErrorParametersChanged;
        }
    }
    return cudaGraphExecUpdateSuccess;
}

extern "C" cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph,
                                           cudaGraphExecUpdateResultInfo *info) {
    Call call(SHIM_cudaGraphExecUpdate);
    *info = cudaGraphExecUpdateResultInfo{cudaGraphExecUpdateError, nullptr, nullptr};
    if (!call || call.r->execs.count(exec) == 0 || call.r->graphs.count(graph) == 0) {
        return call.give(cudaErrorInvalidValue);
    }
    info->result = compare_nodes(*exec->nodes, graph->nodes);
    if (info->result != cudaGraphExecUpdateSuccess) {
        return call.give(cudaErrorGraphExecUpdateFailure);
    }
    exec->nodes = std::make_shared<const Nodes>(graph->nodes);
    return call.give();
}

static cudaError_t check_graph_stream(Runtime *r, cudaGraphExec_t exec, CUstream_st *s) {
    return s == nullptr                ? cudaErrorInvalidResourceHandle
           : r->execs.count(exec) == 0 ? cudaErrorInvalidValue
                                       : cudaSuccess;
}

extern "C" cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream) {
    Call call(SHIM_cudaGraphUpload);
    return call.give(call ? check_graph_stream(call.r, exec, find_stream(call.r, stream)) : call.error);
}

extern "C" cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    Call call(SHIM_cudaGraphLaunch);
    Runtime *r = call.r;
    CUstream_st *s = find_stream(r, stream);
    cudaError_t e = call ? check_graph_stream(r, exec, s) : call.error;
    e = e == cudaSuccess && s->capture == nullptr ? refuse_implicit(r, s) : e;
    if (e != cudaSuccess) {
        return call.give(e);
    }
    r->counts.graph_launches++;
    for (const Op &op : *exec->nodes) {
        if (s->capture == nullptr) {
            queue(r, s, op, true);
        } else if ((e = hand_in(r, s, op)) != cudaSuccess) {
            break;
        }
    }
    return call.give(e);
}

extern "C" cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    Call call(SHIM_cudaGraphDestroy);
    return destroy(call, call.r->graphs, graph, call.r->counts.live_graphs, cudaErrorInvalidValue);
}

extern "C" cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    Call call(SHIM_cudaGraphExecDestroy);
    return destroy(call, call.r->execs, exec, call.r->counts.live_execs, cudaErrorInvalidValue);
}

/* ---- Launches -------------------------------------------------------------------------------- */

cudaError_t shim_func_set_attribute(const void *kernel, cudaFuncAttribute attribute, int value) {
    Call call(SHIM_cudaFuncSetAttribute);
    if (!call || kernel == nullptr) {
        return call.give(cudaErrorInvalidDeviceFunction);
    }
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) {
        return call.give(value >= -1 && value <= 100 ? cudaSuccess : cudaErrorInvalidValue);
    }
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 || value > SHARED_MAX) {
        return call.give(cudaErrorInvalidValue);
    }
    call.r->shared_limits[kernel] = value;
    return call.give();
}

cudaError_t shim_func_get_attributes(cudaFuncAttributes *attributes, const void *kernel) {
    Call call(SHIM_cudaFuncGetAttributes);
    if (!call || kernel == nullptr || attributes == nullptr) {
        return call.give(cudaErrorInvalidDeviceFunction);
    }
    attributes->binaryVersion = call.r->major * 10 + call.r->minor;
    attributes->ptxVersion = call.r->compiled != 0 ? call.r->compiled : attributes->binaryVersion;
    return call.give();
}

static cudaError_t check_launch(Runtime *r, const cudaLaunchConfig_t *config, const void *kernel) {
    const dim3 &g = config->gridDim, &b = config->blockDim;
    if (kernel == nullptr) {
        return cudaErrorInvalidDeviceFunction;
    }
    if (g.x == 0 || g.y == 0 || g.z == 0 || g.x > INT32_MAX || g.y > 65535 || g.z > 65535 || b.x == 0 || b.y == 0 ||
        b.z == 0 || b.x > 1024 || b.y > 1024 || b.z > 64 || b.x * b.y * b.z > 1024) {
        return cudaErrorInvalidConfiguration;
    }
    auto limit = r->shared_limits.find(kernel);
    if (config->dynamicSmemBytes > (size_t)(limit != r->shared_limits.end() ? limit->second : SHARED_DEFAULT)) {
        return cudaErrorInvalidValue;
    }
    for (unsigned i = 0; i < config->numAttrs; i++) {
        const cudaLaunchAttribute &a = config->attrs[i];
        bool cluster = a.id == cudaLaunchAttributeClusterDimension &&
                       a.val.clusterDim.x * a.val.clusterDim.y * a.val.clusterDim.z > 1;
        if (cluster || (a.id == cudaLaunchAttributeCooperative && a.val.cooperative != 0)) {
            return cudaErrorNotSupported;
        }
    }
    return cudaSuccess;
}

static bool comes_early(const cudaLaunchConfig_t *config) {
    for (unsigned i = 0; i < config->numAttrs; i++) {
        const cudaLaunchAttribute &a = config->attrs[i];
        if (a.id == cudaLaunchAttributeProgrammaticStreamSerialization) {
            return a.val.programmaticStreamSerializationAllowed != 0;
        }
    }
    return false;
}

cudaError_t shim_launch(const cudaLaunchConfig_t *config, const void *kernel, std::function<void()> thread) {
    Call call(SHIM_cudaLaunchKernelEx);
    Runtime *r = call.r;
    if (!call) {
        return call.give();
    }
    CUstream_st *s = find_stream(r, config->stream);
    if (s == nullptr || s->device != current_device) {
        return call.give(cudaErrorInvalidResourceHandle);
    }
    cudaError_t e = check_launch(r, config, kernel);
    if (e != cudaSuccess) {
        return call.give(e);
    }
    r->counts.early += comes_early(config);
    Op op = {};
    op.kind = Kind::kernel;
    op.work = std::make_shared<const Work>(
        Work{std::move(thread), kernel, config->gridDim, config->blockDim, config->dynamicSmemBytes,
             comes_early(config)});
    return call.give(hand_in(r, s, op));
}

/* ==== For tests: shim.h ======================================================================= */

extern "C" shim_counts shim_get_counts(void) {
    Runtime *r = runtime();
    std::lock_guard<std::mutex> held(r->lock);
    r->counts.threads = n_threads_run;
    r->counts.products = n_products;
    return r->counts;
}

extern "C" void shim_clear_counts(void) {
    Runtime *r = runtime();
    std::lock_guard<std::mutex> held(r->lock);
    shim_counts live = r->counts;
    memset(&r->counts, 0, sizeof r->counts);
    n_threads_run = n_products = 0;
    r->counts.live_bytes = r->counts.peak_bytes = live.live_bytes;
    r->counts.live_allocations = live.live_allocations;
    r->counts.live_host_bytes = live.live_host_bytes;
    r->counts.live_host_allocations = live.live_host_allocations;
    r->counts.live_streams = live.live_streams;
    r->counts.live_events = live.live_events;
    r->counts.live_graphs = live.live_graphs;
    r->counts.live_execs = live.live_execs;
}

template <typename T> static void delete_all(std::set<T *> *handles) {
    for (T *handle : *handles) {
        delete handle;
    }
    handles->clear();
}

extern "C" void shim_reset(void) {
    Runtime *r = runtime();
    std::lock_guard<std::mutex> held(r->lock);
    drop_work(r);
    while (!r->blocks.empty()) {
        forget_block(r, r->blocks.begin());
    }
    r->used.clear();
    r->shared_limits.clear();
    r->null_streams.clear();
    r->captures.clear();
    delete_all(&r->streams);
    delete_all(&r->events);
    delete_all(&r->graphs);
    delete_all(&r->execs);
    set_defaults(r);
    n_threads_run = n_products = 0;
    last_error = cudaSuccess;
    current_device = 0;
}

static void arm(int kind, uint64_t n, int error, int forever) {
    Runtime *r = runtime();
    std::lock_guard<std::mutex> held(r->lock);
    r->fault_kind = kind;
    r->fault_at = n;
    r->fault_seen = 0;
    r->fault = (cudaError_t)error;
    r->fault_forever = forever != 0;
}

extern "C" void shim_fail(uint64_t n, int error, int forever) {
    arm(-1, n, error, forever);
}

extern "C" void shim_fail_call(shim_call kind, uint64_t n, int error, int forever) {
    arm((int)kind, n, error, forever);
}

extern "C" void shim_set_devices(int n) {
    Runtime *r = runtime();
    std::lock_guard<std::mutex> held(r->lock);
    r->n_devices = n;
}

extern "C" void shim_set_memory(uint64_t bytes) {
    Runtime *r = runtime();
    std::lock_guard<std::mutex> held(r->lock);
    r->memory = bytes;
}

extern "C" void shim_set_processors(int n) {
    Runtime *r = runtime();
    std::lock_guard<std::mutex> held(r->lock);
    r->n_processors = n;
}

extern "C" void shim_set_compiled(int version) {
    Runtime *r = runtime();
    std::lock_guard<std::mutex> held(r->lock);
    r->compiled = version;
}

extern "C" void shim_set_capability(int major, int minor) {
    Runtime *r = runtime();
    std::lock_guard<std::mutex> held(r->lock);
    r->major = major;
    r->minor = minor;
}

extern "C" void shim_set_order(uint64_t seed) {
    Runtime *r = runtime();
    std::lock_guard<std::mutex> held(r->lock);
    order = seed;
    random_state = seed * 0x9E3779B97F4A7C15 | 1;
}
