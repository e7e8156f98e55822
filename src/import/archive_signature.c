// The program's signature: which graph inputs are parameters, buffers or the user's, which outputs are losses or mutations,
// what the user's inputs mean, and the sizes for which all of it was exported.
#include "import/archive.h"

// Far above any real program; they bound the work that a hostile one can ask for.
enum { MAX_SYMBOLS = 1024, MAX_GUARDS = 4096, MAX_GUARD_TEXT = 1 << 20, MAX_USER_INPUTS = 256 };

// ---- symbols and guards --------------------------------------------------------------------------------------------------
static bool is_identifier(const char *s) {
    size_t n = strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789");
    return n > 0 && s[n] == 0;
}

typedef VEC(const char *) Strings;

// A range over an expression (a dimension derived from another) becomes a guard.
static Status read_range(ArchiveReader *r, const char *name, const json_t *v, Strings *guards) {
    json_t *lo, *hi;
    TRY(json_field_opt(v, "min_val", JSON_INTEGER, &lo, r->d));
    TRY(json_field_opt(v, "max_val", JSON_INTEGER, &hi, r->d));
    int64_t min = lo ? json_integer_value(lo) : 0, max = hi ? json_integer_value(hi) : INT64_MAX;
    if (min > max) return diag_error(r->d, ST_INPUT, "an empty range [%lld, %lld]", (long long)min, (long long)max);
    if (is_identifier(name)) {
        int64_t k = symtable_intern(&r->syms, name);  // may move the table
        SymbolInfo *s = &r->syms.symbol.data[k];
        s->min = min;
        s->max = max;
        return ST_OK;
    }
    if (min > 0) vec_push(guards, arena_printf(r->a, "(%s) >= %lld", name, (long long)min));
    if (hi) vec_push(guards, arena_printf(r->a, "(%s) <= %lld", name, (long long)max));
    return ST_OK;
}

Status archive_read_ranges(ArchiveReader *r, const json_t *program) {
    json_t *ranges, *list, *v;
    const char *name;
    size_t i, ntext = 0;
    Strings guards = {0};
    Status st = json_field_opt(program, "range_constraints", JSON_OBJECT, &ranges, r->d);
    if (st == ST_OK) st = json_field_opt(program, "guards_code", JSON_ARRAY, &list, r->d);
    if (st == ST_OK && ranges) {
        json_object_foreach(ranges, name, v) {
            st = read_range(r, name, v, &guards);
            if (st != ST_OK) st = diag_where(r->d, "range of %.200s", name);
            if (st != ST_OK) break;
        }
    }
    if (st == ST_OK && list) {
        json_array_foreach(list, i, v) {
            st = json_expect(v, JSON_STRING, "a guard", r->d);
            ntext += st == ST_OK ? json_string_length(v) : 0;
            if (st == ST_OK && (i >= MAX_GUARDS || ntext > MAX_GUARD_TEXT)) st = diag_error(r->d, ST_INPUT, "too many guards");
            if (st != ST_OK) break;
            vec_push(&guards, arena_strdup(r->a, json_string_value(v)));
        }
    }
    r->ar->nguard = (int)guards.len;
    r->ar->guard = arena_copy(r->a, guards.data, sizeof(const char *) * (size_t)guards.len);
    vec_free(&guards);
    return st;
}

// ---- inputs --------------------------------------------------------------------------------------------------------------
static Status user_tensor(ArchiveReader *r, AtenInput *in) {
    int64_t at;
    if (!map_get(r->ar->graph->tensor_index, in->arg, &at)) return diag_error(r->d, ST_INPUT, "its sizes are not in the archive");
    const AtenTensor *t = &r->ar->graph->tensor[at];
    if (!t->known) return diag_error(r->d, ST_UNSUPPORTED, "its sizes cannot be read (at most %d dims)", MAX_DIMS);
    if (r->ar->nuser >= MAX_USER_INPUTS) return diag_error(r->d, ST_UNSUPPORTED, "over %d inputs", MAX_USER_INPUTS);
    in->is_tensor = true;
    in->user = r->ar->nuser;
    AtenUserInput *u = &r->ar->user[r->ar->nuser++];
    *u = (AtenUserInput){.name = in->arg, .dtype = t->dtype, .ndim = t->ndim, .seq_dim = -1, .batch_dim = -1};
    memcpy(u->size, t->size, sizeof u->size);
    return ST_OK;
}

static Status named_input(ArchiveReader *r, const json_t *v, const char *key, AtenInput *in) {
    json_t *arg;
    const char *name;
    TRY(json_field(v, "arg", JSON_OBJECT, &arg, r->d));
    TRY(json_field_str(arg, "name", &name, r->d));
    in->arg = arena_strdup(r->a, name);
    TRY(json_field_str(v, key, &name, r->d));
    in->target = arena_strdup(r->a, name);
    in->persistent = true;
    return ST_OK;
}

static Status user_input(ArchiveReader *r, const json_t *v, AtenInput *in) {
    json_t *arg;
    TRY(json_field(v, "arg", JSON_OBJECT, &arg, r->d));
    Arg a = {0};
    TRY(archive_read_arg(r, arg, 0, &a));
    in->kind = AIN_USER;
    in->arg = a.kind == ARG_TENSOR ? a.names[0] : a.kind == ARG_SYM_INT && a.sym_names[0] ? a.sym_names[0] : "";
    return a.kind == ARG_TENSOR ? user_tensor(r, in) : ST_OK;
}

static Status read_input(ArchiveReader *r, const json_t *spec, AtenInput *in) {
    const char *kind, *name;
    json_t *v;
    *in = (AtenInput){.param = -1, .constant = -1, .user = -1};
    TRY(json_union(spec, &kind, &v, r->d));
    if (strcmp(kind, "user_input") == 0) return user_input(r, v, in);
    if (strcmp(kind, "constant_input") == 0) {
        TRY(json_field_str(v, "name", &name, r->d));
        in->arg = arena_strdup(r->a, name);
        return ST_OK;
    }
    if (strcmp(kind, "parameter") == 0) {
        in->kind = AIN_PARAMETER;
        return named_input(r, v, "parameter_name", in);
    }
    if (strcmp(kind, "buffer") == 0) {
        in->kind = AIN_BUFFER;
        TRY(named_input(r, v, "buffer_name", in));
        return json_field_bool(v, "persistent", &in->persistent, r->d);
    }
    if (strcmp(kind, "tensor_constant") == 0) {
        in->kind = AIN_CONSTANT;
        return named_input(r, v, "tensor_constant_name", in);
    }
    return diag_error(r->d, ST_UNSUPPORTED, "an input of kind \"%.60s\"; export the program without it", kind);
}

// The spec and the graph list the same inputs in the same order.
static Status same_input(ArchiveReader *r, const AtenInput *in, const Arg *arg) {
    bool tensor = in->kind != AIN_USER || in->is_tensor;
    if (!tensor && arg->kind != ARG_TENSOR) return ST_OK;
    if (tensor && arg->kind == ARG_TENSOR && strcmp(arg->names[0], in->arg) == 0) return ST_OK;
    return diag_error(r->d, ST_INPUT, "the graph has another input in this place");
}

static Status read_inputs(ArchiveReader *r, const json_t *specs) {
    Archive *ar = r->ar;
    ar->ninput = (int)json_array_size(specs);
    if (ar->ninput != ar->graph->nin)
        return diag_error(r->d, ST_INPUT, "the signature has %d inputs, the graph %d", ar->ninput, ar->graph->nin);
    ar->input = ARENA_ARRAY(r->a, AtenInput, ar->ninput);
    ar->user = ARENA_ARRAY(r->a, AtenUserInput, ar->ninput);
    Map *seen = map_new(r->scratch);
    for (int i = 0; i < ar->ninput; i++) {
        AtenInput *in = &ar->input[i];
        int64_t other;
        Status st = read_input(r, json_array_get(specs, (size_t)i), in);
        if (st == ST_OK) st = same_input(r, in, &ar->graph->in[i]);
        if (st == ST_OK && in->target && map_get(seen, in->target, &other))
            st = diag_error(r->d, ST_INPUT, "'%.200s' is also input %lld", in->target, (long long)other);
        if (st != ST_OK) return diag_where(r->d, "input %d", i);
        if (in->target) map_set(seen, in->target, i);
    }
    return ST_OK;
}

// ---- outputs -------------------------------------------------------------------------------------------------------------
static Status read_output(ArchiveReader *r, const json_t *spec, const Arg *arg, AtenOutput *out) {
    static const struct { const char *kind, *target; } mutations[] = {
        {"buffer_mutation", "buffer_name"}, {"user_input_mutation", "user_input_name"}, {"parameter_mutation", "parameter_name"}};
    const char *kind, *name;
    json_t *v;
    TRY(json_union(spec, &kind, &v, r->d));
    *out = (AtenOutput){.kind = AOUT_LOSS_OR_USER, .arg = *arg};
    if (strcmp(kind, "user_output") == 0 || strcmp(kind, "loss_output") == 0) return ST_OK;
    for (size_t i = 0; i < sizeof mutations / sizeof *mutations; i++) {
        if (strcmp(kind, mutations[i].kind) != 0) continue;
        TRY(json_field_str(v, mutations[i].target, &name, r->d));
        out->kind = AOUT_MUTATION;
        out->target = arena_strdup(r->a, name);
        return ST_OK;
    }
    return diag_error(r->d, ST_UNSUPPORTED, "an output of kind \"%.60s\"; export the forward that returns the loss", kind);
}

static Status read_outputs(ArchiveReader *r, const json_t *specs) {
    Archive *ar = r->ar;
    ar->noutput = (int)json_array_size(specs);
    if (ar->noutput != ar->graph->nout)
        return diag_error(r->d, ST_INPUT, "the signature has %d outputs, the graph %d", ar->noutput, ar->graph->nout);
    ar->output = ARENA_ARRAY(r->a, AtenOutput, ar->noutput);
    for (int i = 0; i < ar->noutput; i++)
        if (read_output(r, json_array_get(specs, (size_t)i), &ar->graph->out[i], &ar->output[i]) != ST_OK)
            return diag_where(r->d, "output %d", i);
    return ST_OK;
}

// ---- roles ---------------------------------------------------------------------------------------------------------------
static const struct { const char *name; Role role; } role_words[] = {
    {"tokens", ROLE_TOKENS}, {"labels", ROLE_LABELS}, {"positions", ROLE_POSITIONS}, {"mask", ROLE_MASK}, {"other", ROLE_OTHER}};

static const struct { const char *name; Role role; } usual_names[] = {
    {"input_ids", ROLE_TOKENS}, {"tokens", ROLE_TOKENS}, {"ids", ROLE_TOKENS}, {"idx", ROLE_TOKENS}, {"x", ROLE_TOKENS},
    {"labels", ROLE_LABELS}, {"targets", ROLE_LABELS}, {"target", ROLE_LABELS}, {"y", ROLE_LABELS},
    {"position_ids", ROLE_POSITIONS}, {"positions", ROLE_POSITIONS}, {"pos", ROLE_POSITIONS},
    {"attention_mask", ROLE_MASK}, {"mask", ROLE_MASK}};

static Status role_of(ArchiveReader *r, const json_t *given, const AtenUserInput *u, Role *out) {
    *out = ROLE_UNKNOWN;
    const json_t *v = given ? json_object_get(given, u->name) : NULL;
    const char *word = json_is_string(v) ? json_string_value(v) : NULL;
    if (v && !word) return diag_error(r->d, ST_INPUT, "the role of input '%.100s' is not a string", u->name);
    DType t;
    bool number = aten_dtype(u->dtype, &t) && !dtype_is_float(t);  // a float input is no token, whatever its name
    for (size_t i = 0; !word && number && i < sizeof usual_names / sizeof *usual_names; i++)
        if (strcmp(u->name, usual_names[i].name) == 0) *out = usual_names[i].role;
    for (size_t i = 0; word && i < sizeof role_words / sizeof *role_words; i++)
        if (strcmp(word, role_words[i].name) == 0) *out = role_words[i].role;
    if (word && *out == ROLE_UNKNOWN)
        return diag_error(r->d, ST_INPUT, "input '%.100s' has role \"%.60s\"; roles are tokens, labels, positions, mask, other",
                          u->name, word);
    return ST_OK;
}

// ---- batch and sequence --------------------------------------------------------------------------------------------------
// The input whose dims say what batch and sequence are: the tokens, else the first with at least two dims.
static AtenUserInput *reference_input(const Archive *ar) {
    AtenUserInput *ref = NULL;
    for (int i = 0; i < ar->nuser; i++) {
        AtenUserInput *u = &ar->user[i];
        if (u->role == ROLE_TOKENS && u->ndim >= 1) return u;
        if (!ref && u->ndim >= 2) ref = u;
    }
    return ref;
}

static int64_t example_size(const Archive *ar, const Sym *s) {
    int64_t *hint = malloc(sizeof *hint * (size_t)max_i64(ar->nsymbol, 1)), v = SYM_UNBOUND;
    CHECK(hint, "out of memory");
    for (int i = 0; i < ar->nsymbol; i++) hint[i] = ar->symbol[i].hint;
    if (sym_value(s, hint, &v) != EVAL_OK) v = SYM_UNBOUND;
    free(hint);
    return v;
}

static bool same_size(const Sym *a, const Sym *b) {
    return a->op == b->op && a->op <= SYM_SYMBOL && a->value == b->value;
}

// The dim of u that is the reference's dim `want`: the same symbol, else one in the same place with the same example size.
static int matching_dim(const Archive *ar, const AtenUserInput *u, const AtenUserInput *ref, int want) {
    if (want < 0) return -1;
    for (int i = 0; i < u->ndim; i++)
        if (ref->size[want]->op == SYM_SYMBOL && same_size(u->size[i], ref->size[want])) return i;
    if (want >= u->ndim || example_size(ar, u->size[want]) != example_size(ar, ref->size[want])) return -1;
    return (u->size[want]->op == SYM_INT) == (ref->size[want]->op == SYM_INT) ? want : -1;
}

static Status extra_dim(ArchiveReader *r, const char *key, int ndim, int dflt, int *out) {
    json_t *v = NULL;
    if (r->extra) TRY(json_field_opt(r->extra, key, JSON_INTEGER, &v, r->d));
    int64_t dim = v ? json_integer_value(v) : dflt;
    if (dim < -1 || dim >= ndim)
        return diag_error(r->d, ST_INPUT, "extra/autosp.json: \"%s\" is %lld, but the tokens have %d dims", key,
                          (long long)dim, ndim);
    *out = (int)dim;
    return ST_OK;
}

static Status assign_dims(ArchiveReader *r) {
    const Archive *ar = r->ar;
    AtenUserInput *ref = reference_input(ar);
    if (!ref) return ST_OK;
    TRY(extra_dim(r, "seq_dim", ref->ndim, ref->ndim >= 2 ? 1 : 0, &ref->seq_dim));
    TRY(extra_dim(r, "batch_dim", ref->ndim, ref->ndim < 2 ? -1 : ref->seq_dim == 0 ? 1 : 0, &ref->batch_dim));
    if (ref->seq_dim == ref->batch_dim)
        return diag_error(r->d, ST_INPUT, "extra/autosp.json: batch and sequence are the same dim");
    for (int i = 0; i < ar->nuser; i++) {
        AtenUserInput *u = &ar->user[i];
        if (u == ref) continue;
        u->seq_dim = matching_dim(ar, u, ref, ref->seq_dim);
        u->batch_dim = matching_dim(ar, u, ref, ref->batch_dim);
    }
    return ST_OK;
}

Status archive_read_signature(ArchiveReader *r, const json_t *signature) {
    json_t *in, *out, *roles = NULL;
    TRY(json_field(signature, "input_specs", JSON_ARRAY, &in, r->d));
    TRY(json_field(signature, "output_specs", JSON_ARRAY, &out, r->d));
    TRY(read_inputs(r, in));
    TRY(read_outputs(r, out));
    // every symbol is known by now
    if (r->syms.symbol.len > MAX_SYMBOLS) return diag_error(r->d, ST_UNSUPPORTED, "over %d symbolic sizes", MAX_SYMBOLS);
    r->ar->nsymbol = (int)r->syms.symbol.len;
    r->ar->symbol = arena_copy(r->a, r->syms.symbol.data, sizeof(SymbolInfo) * (size_t)r->syms.symbol.len);
    if (r->extra) TRY(json_field_opt(r->extra, "inputs", JSON_OBJECT, &roles, r->d));
    for (int i = 0; i < r->ar->nuser; i++) TRY(role_of(r, roles, &r->ar->user[i], &r->ar->user[i].role));
    return assign_dims(r);
}
