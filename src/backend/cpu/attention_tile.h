// Matrix products of cache-resident blocks, in register tiles of TILE_ROWS x two vectors: for attention's many small products,
// where a BLAS spends its time packing and accumulating through memory. The right operand is packed into panels, packed once and
// used for many products; the left one is read where it is, transposed or not. Included once per float type (see real.h).

enum { FN(TILE_LANES) = TILE_VECTOR_BYTES / sizeof(REAL), FN(TILE_COLS) = 2 * FN(TILE_LANES) };
typedef REAL FN(TileVec) __attribute__((vector_size(TILE_VECTOR_BYTES)));

// Elements of a packed [k, n] operand: panels of TILE_COLS columns, zero-filled.
static int64_t FN(tile_packed_len)(int64_t k, int64_t n) { return k * round_up(n, FN(TILE_COLS)); }

// b is [k, n], row stride ldb.
static void FN(tile_pack)(REAL *restrict dst, const REAL *restrict b, int64_t ldb, int64_t k, int64_t n) {
    enum { W = FN(TILE_COLS) };
    for (int64_t j = 0; j < n; j += W)
        for (int64_t l = 0; l < k; l++, dst += W) {
            if (n - j >= W) {
                memcpy(dst, b + l * ldb + j, W * sizeof *dst);
            } else {
                memset(dst, 0, W * sizeof *dst);
                memcpy(dst, b + l * ldb + j, (size_t)(n - j) * sizeof *dst);
            }
        }
}

// b is stored transposed, [n, k] with row stride ldb: eight rows are read side by side.
static void FN(tile_pack_transposed)(REAL *restrict dst, const REAL *restrict b, int64_t ldb, int64_t k, int64_t n) {
    enum { W = FN(TILE_COLS), BLOCK = 8 };
    for (int64_t j = 0; j < n; j += W, dst += k * W) {
        int64_t cols = min_i64(W, n - j), l = 0;
        if (cols < W) memset(dst, 0, (size_t)(k * W) * sizeof *dst);
        for (; W % BLOCK == 0 && cols == W && l + BLOCK <= k; l += BLOCK)
            for (int64_t c = 0; c < W; c += BLOCK) {
                REAL t[BLOCK][BLOCK];
                for (int i = 0; i < BLOCK; i++) memcpy(t[i], b + (j + c + i) * ldb + l, sizeof t[i]);
                FN(tile_transpose8)(t);
                for (int i = 0; i < BLOCK; i++) memcpy(dst + (l + i) * W + c, t[i], sizeof t[i]);
            }
        for (int64_t c = 0; c < cols; c++)
            for (int64_t i = l; i < k; i++) dst[i * W + c] = b[(j + c) * ldb + i];
    }
}

// One tile: c[rows, cols] (+)= a b; element (r, l) of a is a[r*a_row + l*a_col]; b is one panel.
static inline void FN(tile)(int64_t rows, int64_t cols, int64_t k, const REAL *a, int64_t a_row, int64_t a_col, const REAL *b,
                            bool add, REAL *c, int64_t ldc) {
    typedef FN(TileVec) V;
    enum { L = FN(TILE_LANES), W = FN(TILE_COLS) };
    // Rows that are not there repeat the last one and are not stored.
    const REAL *a0 = a, *a1 = a + min_i64(1, rows - 1) * a_row, *a2 = a + min_i64(2, rows - 1) * a_row,
               *a3 = a + min_i64(3, rows - 1) * a_row, *a4 = a + min_i64(4, rows - 1) * a_row,
               *a5 = a + min_i64(5, rows - 1) * a_row;
    V c00 = {0}, c01 = {0}, c10 = {0}, c11 = {0}, c20 = {0}, c21 = {0}, c30 = {0}, c31 = {0}, c40 = {0}, c41 = {0}, c50 = {0},
      c51 = {0};
#define TILE_ROW(r)        \
    x = a##r[at] - (V){0}; \
    c##r##0 += x * b0, c##r##1 += x * b1;
    for (int64_t l = 0, at = 0; l < k; l++, at += a_col, b += W) {
        V b0, b1, x;
        memcpy(&b0, b, sizeof b0), memcpy(&b1, b + L, sizeof b1);
        TILE_ROW(0) TILE_ROW(1) TILE_ROW(2) TILE_ROW(3) TILE_ROW(4) TILE_ROW(5)
    }
#undef TILE_ROW
    V out[TILE_ROWS][2] = {{c00, c01}, {c10, c11}, {c20, c21}, {c30, c31}, {c40, c41}, {c50, c51}};
    for (int64_t r = 0; r < rows; r++, c += ldc) {
        if (cols == W) {
            V o0 = out[r][0], o1 = out[r][1], p0, p1;
            if (add) memcpy(&p0, c, sizeof p0), memcpy(&p1, c + L, sizeof p1), o0 += p0, o1 += p1;
            memcpy(c, &o0, sizeof o0), memcpy(c + L, &o1, sizeof o1);
        } else {
            const REAL *o = (const REAL *)out[r];
            for (int64_t j = 0; j < cols; j++) c[j] = add ? c[j] + o[j] : o[j];
        }
    }
}

// c[m, n] (+)= op(a)[m, k] b[k, n]; b packed; trans_a: a is stored [k, m].
static void FN(tile_gemm)(bool trans_a, int64_t m, int64_t n, int64_t k, const REAL *a, int64_t lda, const REAL *b, bool add,
                          REAL *c, int64_t ldc) {
    int64_t a_row = trans_a ? 1 : lda, a_col = trans_a ? lda : 1;
    for (int64_t j = 0; j < n; j += FN(TILE_COLS), b += k * FN(TILE_COLS))
        for (int64_t i = 0; i < m; i += TILE_ROWS)
            FN(tile)
            (min_i64(TILE_ROWS, m - i), min_i64(FN(TILE_COLS), n - j), k, a + i * a_row, a_row, a_col, b, add, c + i * ldc + j,
             ldc);
}
