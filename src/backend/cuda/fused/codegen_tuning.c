// What decides between ways to generate a fused kernel, in one place: `gpu_fused tune` measures changes of single entries. None
// of it may depend on the GPU that is present (scratch is planned without one, and sums are added in an order that shapes fix);
// the numbers are for 132 multiprocessors of 65536 registers.
#include "backend/cuda/fused/codegen_fused.h"

FusedTuning fused_tuning = {
    .sms = 132,
    // Rows in registers: `row_vectors` for a thread, until a row has `row_threads`. hoist: what all rows share is loaded once. A
    // thread needs about `row_registers` beside what it keeps.
    .row_vectors = 2,
    .row_threads = 512,
    .kept_words = 64,
    .summed_words = 96,
    .row_registers = 30,
    .hoist = 1,
    // A block waits in every reduction of a row. Where a multiprocessor holds fewer than `blocks_per_level` blocks for each of
    // the reductions that wait for each other, nothing hides that: each block then loads its next row before it reduces this one,
    // if that takes at most `prefetch_words` registers and leaves `prefetch_registers` free (ptxas took up to 32 more for it).
    // 0: never.
    .blocks_per_level = 2,
    .prefetch_words = 16,
    .prefetch_registers = 24,
    // Threads of a multiprocessor beyond which more blocks are not asked for, and rows of a worker from which on there are just
    // as many workers as fit on the GPU at once (fewer rows: uneven shares would leave too much of it idle).
    .resident = 1024,
    .steady_rows = 24,
    // Column sums without reductions of rows: registers that the rows which a thread loads at once may take.
    .column_words = 16,
    // A long row split among blocks: blocks of a multiprocessor, and vectors that a thread loads at once.
    .split_blocks = 4,
    .split_unroll = 4,
    // Pointwise kernels: an input of at least `along_elements` that repeats along a dim stays in registers for up to
    // `along_steps` turns of a thread along that dim. 1: one turn. Not where the other dims have fewer than `along_places`
    // vectors that are no multiple of a block: too many of its threads would idle.
    .along_elements = 1 << 18,
    .along_steps = 8,
    .along_places = 256 * 8,
};
