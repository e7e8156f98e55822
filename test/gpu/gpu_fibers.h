// Stands in for gpu.h where tensor-core kernels are tested on the host: a block has 128 threads, each a fiber, and the warp-wide
// instructions of flash_mma.h are done by exchange, by the layouts of the PTX manual ("Matrix Fragments for mma.m16n8k16",
// "ldmatrix").
// Slow and obvious. Barriers are real: a missing one shows, as do asynchronous copies that nobody waited for.
#define GPU_EMULATE 1
#define GPU_FIBERS 1
#include "gpu_real.h"
#include <setjmp.h>
#include <ucontext.h>

enum { FIBERS = 128, FIBER_STACK = 256 << 10, FIBER_COPIES = 4096 };
struct FiberBarrier { int count; u64 turn; };
struct FiberCopy { u16 *to; const void *from; bool there; };
static ucontext_t fiber_first[FIBERS];  // at its start; from then on by jumps, since swapcontext asks the kernel for signal masks
static jmp_buf fiber_main, fiber_at[FIBERS];
static bool fiber_begun[FIBERS], fiber_done[FIBERS], fiber_vote;
static int fiber_id;
static FiberBarrier fiber_block, fiber_warp[FIBERS / 32];
static const void *fiber_params;
static void (*fiber_body)(const void *);
alignas(16) static char fiber_stack[FIBERS][FIBER_STACK];
alignas(16) static u16 fiber_shared[(227 << 10) / 2];
static FiberCopy fiber_copy[FIBERS][FIBER_COPIES];
static int fiber_ncopy[FIBERS];

static void fiber_leave(void) {
    if (!_setjmp(fiber_at[fiber_id])) _longjmp(fiber_main, 1);
}
__attribute__((noinline)) static void fiber_enter(int i) {
    fiber_id = i;
    if (_setjmp(fiber_main)) return;
    if (fiber_begun[fiber_id]) _longjmp(fiber_at[fiber_id], 1);
    fiber_begun[fiber_id] = true;
    setcontext(&fiber_first[fiber_id]);
}
static void fiber_wait(FiberBarrier *b, int n) {
    u64 turn = b->turn;
    if (++b->count == n) { b->count = 0, b->turn++; return; }
    while (b->turn == turn) fiber_leave();
}
static void fiber_sync(void) { fiber_wait(&fiber_block, FIBERS); }
static void fiber_sync_warp(void) { fiber_wait(&fiber_warp[fiber_id / 32], 32); }
static void fiber_start(void) {
    fiber_body(fiber_params);
    fiber_done[fiber_id] = true;
    fiber_leave();
}
static void fiber_run_block(void (*body)(const void *), const void *params) {
    fiber_body = body, fiber_params = params, fiber_block = FiberBarrier();
    for (int i = 0; i < FIBERS / 32; i++) fiber_warp[i] = FiberBarrier();
    memset(fiber_shared, 0xff, sizeof fiber_shared);  // NaN
    for (int i = 0; i < FIBERS; i++) {
        getcontext(&fiber_first[i]);
        fiber_first[i].uc_stack.ss_sp = fiber_stack[i], fiber_first[i].uc_stack.ss_size = FIBER_STACK;
        makecontext(&fiber_first[i], fiber_start, 0);
        fiber_begun[i] = fiber_done[i] = false, fiber_ncopy[i] = 0;
    }
    for (bool some = true; some;) {
        some = false;
        for (int i = 0; i < FIBERS; i++) {
            if (fiber_done[i]) continue;
            some = true;
            fiber_enter(i);
        }
    }
}

#undef gpu_thread_x
#define gpu_thread_x ((i64)fiber_id)
#undef gpu_block_threads
#define gpu_block_threads ((i64)FIBERS)
#define gpu_sync() fiber_sync()
#undef GPU_KERNEL
#define GPU_KERNEL(name, Params, threads)                                                     \
    static void name##_body(const Params &p);                                                 \
    static void name##_call(const void *params) { name##_body(*(const Params *)params); }     \
    extern "C" void name(const GpuDim *grid, const void *params) {                            \
        gpu_emulated.grid = *grid;                                                            \
        for (u32 z = 0; z < grid->z; z++)                                                     \
            for (u32 y = 0; y < grid->y; y++)                                                 \
                for (u32 x = 0; x < grid->x; x++) {                                           \
                    gpu_emulated.block.x = x, gpu_emulated.block.y = y, gpu_emulated.block.z = z; \
                    fiber_run_block(name##_call, params);                                     \
                }                                                                             \
    }                                                                                         \
    static void name##_body(const Params &p)

// ---- what flash_mma.h asks of the hardware --------------------------------------------------------------------------------
#define MMA_SHARED(name) u16 *name = fiber_shared
static const u16 *fiber_address[FIBERS];
static u32 fiber_a[FIBERS][4], fiber_b[FIBERS][2];
static float fiber_value[FIBERS];

static void mma_load(u32 *r, const u16 *at) {
    int warp = fiber_id / 32 * 32, lane = fiber_id % 32;
    fiber_address[fiber_id] = at;
    fiber_sync_warp();
    for (int m = 0; m < 4; m++) {
        const u16 *row = fiber_address[warp + m * 8 + lane / 4];
        r[m] = (u32)row[lane % 4 * 2] | (u32)row[lane % 4 * 2 + 1] << 16;
    }
    fiber_sync_warp();
}
static void mma_load_transposed(u32 *r, const u16 *at) {
    int warp = fiber_id / 32 * 32, lane = fiber_id % 32;
    fiber_address[fiber_id] = at;
    fiber_sync_warp();
    for (int m = 0; m < 4; m++) {
        const u16 *const *row = &fiber_address[warp + m * 8 + lane % 4 * 2];
        r[m] = (u32)row[0][lane / 4] | (u32)row[1][lane / 4] << 16;
    }
    fiber_sync_warp();
}
static float fiber_half(u32 pair, int i) { bf16 x = {(u16)(pair >> 16 * i)}; return to_float(x); }
static void mma_bf16(float *c, const u32 *a, u32 b0, u32 b1) {
    int warp = fiber_id / 32 * 32, lane = fiber_id % 32;
    memcpy(fiber_a[fiber_id], a, sizeof fiber_a[0]), fiber_b[fiber_id][0] = b0, fiber_b[fiber_id][1] = b1;
    fiber_sync_warp();
    for (int e = 0; e < 4; e++) {
        int row = lane / 4 + e / 2 * 8, col = lane % 4 * 2 + e % 2;
        for (int k = 0; k < 16; k++) {
            float x = fiber_half(fiber_a[warp + row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k % 2);
            float y = fiber_half(fiber_b[warp + col * 4 + k % 8 / 2][k / 8], k % 2);
            c[e] += x * y;
        }
    }
    fiber_sync_warp();
}
static u32 mma_pack(float lo, float hi) { return (u32)to_bf16(lo).bits | (u32)to_bf16(hi).bits << 16; }
static float mma_exp2(float x) { return exp2f(x); }
static void mma_copy16(u16 *to, const void *from, bool there) {
    if (fiber_ncopy[fiber_id] < FIBER_COPIES) fiber_copy[fiber_id][fiber_ncopy[fiber_id]++] = FiberCopy{to, from, there};
}
static void mma_copies_done(void) {
    for (int i = 0; i < fiber_ncopy[fiber_id]; i++) {
        FiberCopy *c = &fiber_copy[fiber_id][i];
        if (c->there) memcpy(c->to, c->from, 16);
        else memset(c->to, 0, 16);
    }
    fiber_ncopy[fiber_id] = 0;
}
static float mma_quad(float v, int m) {
    fiber_value[fiber_id] = v;
    fiber_sync_warp();
    float r = fiber_value[fiber_id ^ m];
    fiber_sync_warp();
    return r;
}
static bool mma_any(bool v) {
    fiber_sync();
    if (fiber_id == 0) fiber_vote = false;
    fiber_sync();
    if (v) fiber_vote = true;
    fiber_sync();
    bool r = fiber_vote;
    fiber_sync();
    return r;
}
