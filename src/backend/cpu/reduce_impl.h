// Loops of reduce.c for element type T, accumulator ACC (at most 8 bytes) and result type OUT. RNAME names the functions,
// TAKE(acc, x) takes x in, START is the neutral element. All are undefined again at the end.

// LANES partial results, combined in a fixed order: exact enough for float sums, and vector code.
static ACC RNAME(row)(const T *x, int64_t n) {
    ACC lane[LANES];
    for (int j = 0; j < LANES; j++) lane[j] = START;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lane[j] = TAKE(lane[j], (ACC)x[i + j]);
    for (int j = 0; i < n; i++, j++) lane[j] = TAKE(lane[j], (ACC)x[i]);
    for (int w = LANES / 2; w > 0; w /= 2)
        for (int j = 0; j < w; j++) lane[j] = TAKE(lane[j], lane[j + w]);
    return lane[0];
}

// Results [at, at + n) of `piece`, from the steps of that piece.
static void RNAME(unit)(const Reduction *r, const T *base, int64_t piece, int64_t at, int64_t n) {
    ACC acc[COLUMNS];
    int64_t first = r->steps * piece / r->pieces, last = r->steps * (piece + 1) / r->pieces;
    for (int64_t j = 0; j < n; j++) acc[j] = START;
    for (int64_t s = first; s < last; s++) {
        int64_t chunk = s % r->chunks * CHUNK;
        const T *x = base + dims_offset(&r->reduced, s / r->chunks) + chunk;
        if (r->row_length > 0) {
            acc[0] = TAKE(acc[0], RNAME(row)(x, min_i64(CHUNK, r->row_length - chunk)));
        } else {
            for (int64_t j = 0; j < n; j++) acc[j] = TAKE(acc[j], (ACC)x[j]);
        }
    }
    for (int64_t j = 0; j < n; j++) {
        if (r->partial) ((ACC *)r->partial)[piece * r->results + at + j] = acc[j];
        else ((OUT *)r->dst)[at + j] = (OUT)acc[j];
    }
}

static void RNAME(part)(void *ctx, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const Reduction *r = ctx;
    for (int64_t u = begin; u < end; u++) {
        int64_t piece = u / r->units, row = u % r->units / r->groups, column = u % r->groups * COLUMNS;
        const T *base = (const T *)r->src + dims_offset(&r->kept, row) + column;
        RNAME(unit)(r, base, piece, row * r->columns + column, min_i64(COLUMNS, r->columns - column));
    }
}

static void RNAME(combine)(const Reduction *r) {
    for (int64_t i = 0; i < r->results; i++) {
        ACC acc = START;
        for (int64_t s = 0; s < r->pieces; s++) acc = TAKE(acc, ((const ACC *)r->partial)[s * r->results + i]);
        ((OUT *)r->dst)[i] = (OUT)acc;
    }
}
#undef T
#undef ACC
#undef OUT
#undef RNAME
#undef TAKE
#undef START
