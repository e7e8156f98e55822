#include "train/data.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/random.h"

typedef struct Piece {   // one file, mapped
    const char *path;
    const unsigned char *data;
    int64_t nbytes;
    int width;           // bytes per token: 1, 2, 4, 8
    int64_t first, n;    // token range within the whole stream
    bool separator;      // followed by the document token
} Piece;

struct Data {
    DataOptions o;
    Piece *piece;
    int npiece;
    int64_t ntokens, nrows;
    const TensorFile *tensors;  // data as rows of named tensors
};

bool data_format_from_name(const char *s, DataFormat *out) {
    static const char *const name[] = {"auto", "bytes", "u16", "u32", "safetensors"};
    for (int i = 0; i < 5; i++)
        if (!strcmp(s, name[i])) {
            *out = (DataFormat)i;
            return true;
        }
    return false;
}

static bool ends_with(const char *s, const char *tail) {
    size_t n = strlen(s), m = strlen(tail);
    return n >= m && !strcmp(s + n - m, tail);
}

static DataFormat format_of(const DataOptions *o, const char *path) {
    if (o->format != DATA_AUTO) return o->format;
    if (ends_with(path, ".safetensors")) return DATA_SAFETENSORS;
    return ends_with(path, ".u16") ? DATA_U16 : ends_with(path, ".u32") ? DATA_U32 : DATA_BYTES;
}

typedef struct Mapping {
    void *p;
    size_t n;
} Mapping;
static void unmap(void *ptr) {
    Mapping *m = ptr;
    munmap(m->p, m->n);
}

static Status map_file(Arena *a, const char *path, Piece *out, Diag *d) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return diag_error(d, ST_IO, "%s: %s", path, strerror(errno));
    struct stat st;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        close(fd);
        return diag_error(d, ST_IO, "%s: not a regular file", path);
    }
    out->path = path;
    out->nbytes = st.st_size;
    if (st.st_size) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        close(fd);
        if (p == MAP_FAILED) return diag_error(d, ST_IO, "%s: cannot map: %s", path, strerror(errno));
        Mapping *m = ARENA_NEW(a, Mapping);
        *m = (Mapping){p, (size_t)st.st_size};
        arena_defer(a, unmap, m);
        out->data = p;
    } else {
        close(fd);
    }
    return ST_OK;
}

static int64_t piece_token(const Piece *p, int64_t i) {
    uint16_t u16;
    uint32_t u32;
    int64_t i64;
    switch (p->width) {
        case 1: return p->data[i];
        case 2: memcpy(&u16, p->data + 2 * i, 2); return u16;
        case 4: memcpy(&u32, p->data + 4 * i, 4); return u32;
        default: memcpy(&i64, p->data + 8 * i, 8); return i64;
    }
}

// ---- opening ---------------------------------------------------------------------------------------------------------------

static Status add_tokens(Data *x, Piece p, Diag *d) {
    for (int64_t i = 0; i < p.n; i++) {
        int64_t t = piece_token(&p, i);
        if (t < 0 || (x->o.vocabulary && t >= x->o.vocabulary))
            return diag_error(d, ST_INPUT,
                              "%s: token %" PRId64 " is id %" PRId64 ", the model's vocabulary has %" PRId64
                              " (is the data format right? see --data-format)",
                              p.path, i, t, x->o.vocabulary);
    }
    p.first = x->ntokens;
    p.separator = x->o.doc_token >= 0;
    x->piece[x->npiece++] = p;
    x->ntokens += p.n + p.separator;
    return ST_OK;
}

static Status open_plain(Data *x, Arena *a, const char *path, int width, Diag *d) {
    Piece p = {.width = width};
    TRY(map_file(a, path, &p, d));
    if (p.nbytes % width)
        return diag_error(d, ST_INPUT, "%s: %" PRId64 " bytes are no whole number of %d-byte token ids", path, p.nbytes, width);
    p.n = p.nbytes / width;
    return add_tokens(x, p, d);
}

// One stream of ids ("tokens" or "input_ids", one-dimensional), or a table of examples (a tensor per input, [N, ...]).
static Status open_safetensors(Data *x, Arena *a, const char *path, Diag *d) {
    TensorFile *f;
    TRY(tensors_open(a, path, &f, d));
    const TensorView *t = tensors_find(f, "tokens");
    if (!t) t = tensors_find(f, "input_ids");
    if (t && t->shape.ndim == 1) {
        if (!t->known_dtype || (t->dtype != DT_I64 && t->dtype != DT_I32))
            return diag_error(d, ST_INPUT, "%s: \"%s\" must be i64 or i32", path, t->name);
        Piece p = {.path = path, .data = t->data, .nbytes = t->nbytes, .width = dtype_nbytes(t->dtype), .n = t->shape.dim[0]};
        return add_tokens(x, p, d);
    }
    if (x->o.nfile != 1) return diag_error(d, ST_INPUT, "%s: a table of examples must be the only data file", path);
    if (tensors_count(f) == 0 || tensors_at(f, 0)->shape.ndim < 1)
        return diag_error(d, ST_INPUT, "%s: no tensors [N, ...] to take examples from", path);
    x->nrows = tensors_at(f, 0)->shape.dim[0];
    for (int64_t i = 0; i < tensors_count(f); i++)
        if (tensors_at(f, i)->shape.ndim < 1 || tensors_at(f, i)->shape.dim[0] != x->nrows)
            return diag_error(d, ST_INPUT, "%s: tensors \"%s\" and \"%s\" have different numbers of rows", path,
                              tensors_at(f, 0)->name, tensors_at(f, i)->name);
    if (x->nrows == 0) return diag_error(d, ST_INPUT, "%s: no examples", path);
    x->tensors = f;
    x->ntokens = x->nrows * x->o.seq;
    return ST_OK;
}

Status data_open(Arena *a, const DataOptions *o, Data **out, Diag *d) {
    Data *x = ARENA_NEW(a, Data);
    x->o = *o;
    x->piece = ARENA_ARRAY(a, Piece, o->nfile);
    if (o->nfile < 1) return diag_error(d, ST_INPUT, "no training data: give --data FILE");
    if (o->doc_token >= 0 && o->vocabulary && o->doc_token >= o->vocabulary)
        return diag_error(d, ST_INPUT, "--doc-token %" PRId64 ": the model's vocabulary has %" PRId64, o->doc_token,
                          o->vocabulary);
    for (int i = 0; i < o->nfile; i++) {
        switch (format_of(o, o->file[i])) {
            case DATA_U16: TRY(open_plain(x, a, o->file[i], 2, d)); break;
            case DATA_U32: TRY(open_plain(x, a, o->file[i], 4, d)); break;
            case DATA_SAFETENSORS: TRY(open_safetensors(x, a, o->file[i], d)); break;
            default: TRY(open_plain(x, a, o->file[i], 1, d)); break;
        }
    }
    if (!x->tensors) {
        x->nrows = x->ntokens / o->seq;
        if (x->nrows < 1)
            return diag_error(d, ST_INPUT, "the data has %" PRId64 " tokens, less than one row of %" PRId64, x->ntokens, o->seq);
    }
    *out = x;
    return ST_OK;
}

int64_t data_ntokens(const Data *x) { return x->ntokens; }
int64_t data_nrows(const Data *x) { return x->nrows; }
const TensorFile *data_tensors(const Data *x) { return x->tensors; }

double data_unigram_entropy(const Data *x) {
    int64_t ids = x->o.vocabulary;
    if (x->tensors || ids <= 0 || ids > (1 << 24)) return NAN;
    double *count = calloc((size_t)ids, sizeof *count);
    if (!count) return NAN;
    double n = 0, h = 0;
    for (int p = 0; p < x->npiece; p++)
        for (int64_t i = 0; i < x->piece[p].n; i++) count[piece_token(&x->piece[p], i)]++, n++;
    for (int64_t k = 0; k < ids; k++)
        if (count[k] > 0) h -= count[k] / n * log(count[k] / n);
    free(count);
    return h;
}

// ---- documents -------------------------------------------------------------------------------------------------------------

static bool is_whole_number(const TensorView *t) { return t->known_dtype && (t->dtype == DT_I64 || t->dtype == DT_I32); }

// The tokens of a table [N, S]; false: it has none of these names.
static bool table_tokens(const TensorFile *f, Piece *out, int64_t *row) {
    const TensorView *t = tensors_find(f, "tokens");
    if (!t) t = tensors_find(f, "input_ids");
    if (!t || t->shape.ndim != 2 || !is_whole_number(t)) return false;
    *out = (Piece){.data = t->data, .width = dtype_nbytes(t->dtype), .n = shape_numel(&t->shape)};
    *row = t->shape.dim[1];
    return true;
}

typedef struct Count {
    int64_t at, row, most;  // tokens so far; in a row; documents of the fullest
    int64_t begun, ended;   // documents of this row, if the token begins one; if it ends one
} Count;

static void count_token(Count *c, bool separator) {
    int64_t s = c->at++ % c->row;
    if (s == 0) c->begun = c->ended = 1;
    c->begun += separator && s > 0;
    c->ended += separator && s < c->row - 1;
    c->most = max_i64(c->most, max_i64(c->begun, c->ended));
}

int64_t data_max_documents(const Data *x) {
    Piece table;
    Count c = {.row = x->o.seq};
    bool whole = x->tensors != NULL;
    if (x->o.doc_token < 0 || (whole && !table_tokens(x->tensors, &table, &c.row))) return 0;
    const Piece *piece = whole ? &table : x->piece;
    int64_t npiece = whole ? 1 : x->npiece, used = whole ? table.n : x->nrows * x->o.seq;  // the last tokens fill no row
    for (int64_t p = 0; p < npiece; p++) {
        for (int64_t i = 0; i < piece[p].n && c.at < used; i++) count_token(&c, piece_token(&piece[p], i) == x->o.doc_token);
        if (piece[p].separator && c.at < used) count_token(&c, true);
    }
    return c.most;
}

// ---- rows --------------------------------------------------------------------------------------------------------------------

// A permutation of [0, n) keyed by `key`: a Feistel network on the next power of four, walked until it lands inside (Black and
// Rogaway's cycle walking). No table, so any step's row is found at once: resuming needs only the step number.
static int64_t permute(int64_t i, int64_t n, uint64_t key) {
    int half = 1;
    while ((INT64_C(1) << (2 * half)) < n) half++;
    uint64_t mask = (UINT64_C(1) << half) - 1, v = (uint64_t)i;
    do {
        uint64_t l = v >> half, r = v & mask;
        for (int round = 0; round < 4; round++) {
            uint64_t t = l ^ (random_mix(key + (uint64_t)round * UINT64_C(0x9E3779B97F4A7C15) + r) & mask);
            l = r;
            r = t;
        }
        v = l << half | r;
    } while (v >= (uint64_t)n);
    return (int64_t)v;
}

int64_t data_row(const Data *x, int64_t step, int64_t batch_row) {
    int64_t k = step * x->o.batch + batch_row;
    return permute(k % x->nrows, x->nrows, random_key(x->o.seed, k / x->nrows, 7));
}

static const Piece *find_piece(const Data *x, int64_t at) {
    int lo = 0, hi = x->npiece - 1;
    while (lo < hi) {
        int mid = (lo + hi + 1) / 2;
        if (x->piece[mid].first <= at)
            lo = mid;
        else
            hi = mid - 1;
    }
    return &x->piece[lo];
}

void data_batch(const Data *x, int64_t step, int64_t *tokens, int64_t *labels, int64_t *positions) {
    for (int64_t b = 0; b < x->o.batch; b++) {
        int64_t at = data_row(x, step, b) * x->o.seq, position = 0;
        const Piece *p = find_piece(x, at);
        bool ended = false;  // the token before ended a document
        for (int64_t s = 0; s < x->o.seq; s++, at++) {
            while (at >= p->first + p->n + p->separator) {
                p++;
                ended = true;
            }
            bool starts = s > 0 && ended;
            if (starts) position = 0;
            int64_t i = b * x->o.seq + s, t = at - p->first < p->n ? piece_token(p, at - p->first) : x->o.doc_token;
            ended = x->o.doc_token >= 0 && t == x->o.doc_token;
            if (tokens) tokens[i] = t;
            if (labels) labels[i] = starts && positions ? -100 : t;
            if (positions) positions[i] = position;
            position++;
        }
    }
}
