// No include guard: a kernel file written once over REAL is compiled for both float types by
//     #define REAL_BITS 32
//     #include "backend/cpu/x_impl.h"
//     #undef REAL_BITS   (and again with 64)
// where x_impl.h includes this file first.
#undef REAL
#undef FN
#undef GEMM
#if REAL_BITS == 32
#define REAL float
#define FN(name) name##_f32
#define GEMM blas_gemm_f32
#else
#define REAL double
#define FN(name) name##_f64
#define GEMM blas_gemm_f64
#endif
