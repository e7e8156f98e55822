#include "backend/cpu/blas.h"
#include <cblas.h>
#include <pthread.h>
#include "backend/cpu/kernels_b.h"
#include "base/containers.h"

// The library counts in int: larger extents are cut into pieces of this many elements (a multiple of every register tile).
enum { PIECE = 1 << 30 };

static pthread_once_t blas_once = PTHREAD_ONCE_INIT;
// One product, one thread: our workers call it side by side, and a pool inside it would fight them for the processors.
static void blas_start(void) { openblas_set_num_threads(1); }
void cpu_blas_init(void) { pthread_once(&blas_once, blas_start); }

#define REAL_BITS 32
#include "backend/cpu/blas_impl.h"
#undef REAL_BITS
#define REAL_BITS 64
#include "backend/cpu/blas_impl.h"
