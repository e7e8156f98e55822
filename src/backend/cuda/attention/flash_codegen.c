// The device source of one attention node: its mask program as code, twice: element by element (codegen_expr.c) and in interval
// arithmetic (flash_interval.h), and the kernels around it, which are embedded texts.
#include "backend/cuda/attention/flash_codegen.h"
#include "backend/cuda/fused/codegen_expr.h"
#include "backend/cuda/attention/flash_params.h"

// By scripts/embed.cmake.
extern const char flash_params_h_text[], flash_interval_h_text[], flash_common_h_text[], flash_kernel_h_text[],
    flash_backward_h_text[], flash_mma_h_text[], flash_mma_forward_h_text[], flash_mma_backward_h_text[];

// ---- what can be done -----------------------------------------------------------------------------------------------------
static Status refuse(const Node *n, Diag *d, const char *why, const char *advice) {
    return diag_error(d, ST_UNSUPPORTED, "%s on the GPU: %s; %s (%s)", op_name(n->op), why, advice, n->source ? n->source : "?");
}

static bool gpu_float(DType t) { return t == DT_F32 || t == DT_BF16; }

static Status check_types(const Node *n, const Operand *in, const Operand *out, Diag *d) {
    bool grad = n->op == OP_ATTENTION_GRAD;
    bool ok = gpu_float(in[0].dtype) && in[1].dtype == in[0].dtype && in[2].dtype == in[0].dtype;
    if (grad)
        ok = ok && in[3].dtype == in[0].dtype && in[5].dtype == in[0].dtype && gpu_float(in[4].dtype) &&
             gpu_float(out[0].dtype) && out[1].dtype == out[0].dtype && out[2].dtype == out[0].dtype;
    else ok = ok && out[0].dtype == in[0].dtype && gpu_float(out[1].dtype);
    return ok ? ST_OK : refuse(n, d, "the element types are not all float32 or all bfloat16", "use --dtype fp32 or bf16");
}

Status flash_check(const Node *n, const Operand *in, const Operand *out, Diag *d) {
    TRY(check_types(n, in, out, d));
    if (n->nin - flash_first_vec(n) > FLASH_MAX_VEC)
        return refuse(n, d, "the mask has more than 16 vectors", "simplify the mask");
    for (int i = 0; i < n->nin; i++)
        if (in[i].sdim >= 0 && in[i].nspan > FLASH_MAX_SPAN)
            return refuse(n, d, "a rank holds more than 96 intervals of an operand", "use fewer ranks, or a contiguous layout");
    if (in[0].dim[3] > 65536 || in[2].dim[3] > 65536)
        return refuse(n, d, "a head has more than 65,536 channels", "use smaller heads");
    if (in[0].dim[2] > 1 << 30 || in[1].dim[2] > 1 << 30)
        return refuse(n, d, "more than 2^30 positions", "use a shorter sequence");
    return ST_OK;
}

static int output_of(const Program *p, int i) { return p && p->nout > i ? p->out[i] : -1; }

FlashForm flash_form(const Node *n, const Operand *in, const Operand *out) {
    const Program *p = node_prog(n, ATTR_PROG);
    FlashForm f = {.visible = output_of(p, 0) >= 0, .bias = output_of(p, 1) >= 0};
    f.raw = !f.bias && node_float_or(n, ATTR_SOFTCAP, 0) == 0 && node_float_or(n, ATTR_SCALE, 1) > 0;
    int64_t widest = max_i64(in[0].dim[3], in[2].dim[3]);
    f.tensor = in[0].dtype == DT_BF16 && widest <= 256 && in[0].dim[3] % 8 == 0 && in[2].dim[3] % 8 == 0;
    f.mt = widest <= 128 ? 2 : 1;
    (void)out;
    return f;
}

bool flash_mma_together(const Operand *in) { return round_up(in[0].dim[3], 16) + round_up(in[2].dim[3], 16) <= 256; }

size_t flash_mma_shared(const FlashForm *f, const Operand *in, FlashMma kernel) {
    int64_t row = round_up(in[0].dim[3], 16) + 8 + round_up(in[2].dim[3], 16) + 8;  // of both kinds of operands, padded
    int64_t own = kernel == FLASH_MMA_FORWARD ? 64 * f->mt * (round_up(in[0].dim[3], 16) + 8) : 64 * row;
    return (size_t)(own + 2 * 64 * row) * 2;
}

// ---- the program ----------------------------------------------------------------------------------------------------------
// The element of vector `slot` at local (lb, lh, l): "((const i64 *)p.vec[2].data)[...]".
static void vector_element(Str *s, const Operand *vec, int slot, const char *position) {
    const char *type = expr_memory_type(vec->dtype);
    str_printf(s, "((const %s *)p.vec[%d].data)[lb * p.vec[%d].stride_b + lh * p.vec[%d].stride_h", type, slot, slot, slot);
    if (vec->global[2] > 1) str_printf(s, " + %s", position);
    str_add(s, "]");
    if (vec->dtype == DT_BOOL) str_add(s, " != 0");
}

static Status element_code(const Program *p, const Operand *vec, Str *s, Diag *d) {
    str_add(
        s,
        "GPU_FN bool flash_program(const FlashParams &p, i64 b, i64 h, i64 q, i64 k, i64 lb, i64 lh, i64 lq, float *bias) {\n");
    static const ExprOptions options = {0};
    for (int i = 0; i < p->ninstr; i++) {
        const Instr *x = &p->instr[i];
        const char *type = expr_register_type(x->dtype);
        if (!type)
            return diag_error(d, ST_UNSUPPORTED, "a mask program computes in %s, which the GPU has not: use float32",
                              dtype_name(x->dtype));
        str_printf(s, "    const %s v%d = ", type, i);
        char name[3][16];
        const int32_t use[3] = {x->a, x->b, x->c};
        const char *operand[3];
        for (int j = 0; j < 3; j++) snprintf(name[j], sizeof name[j], "v%d", use[j]), operand[j] = name[j];
        switch (x->code) {
        case PROG_INDEX_B: str_add(s, "b"); break;
        case PROG_INDEX_H: str_add(s, "h"); break;
        case PROG_INDEX_Q: str_add(s, "q"); break;
        case PROG_INDEX_K: str_add(s, "k"); break;
        case PROG_VEC_Q: vector_element(s, &vec[x->a], x->a, "lq"); break;
        case PROG_VEC_K: vector_element(s, &vec[x->a], x->a, "k"); break;
        default: TRY(expr_instr(s, p, i, operand, &options, d));
        }
        str_add(s, ";\n");
    }
    if (output_of(p, 1) >= 0) str_printf(s, "    *bias = v%d;\n", output_of(p, 1));
    if (output_of(p, 0) >= 0) str_printf(s, "    return v%d;\n}\n", output_of(p, 0));
    else str_add(s, "    return true;\n}\n");
    return ST_OK;
}

// Interval rules by op: one operand; two; two and whether the result is a float.
static const char *const range_unary[OP_COUNT] = {
    [OP_NEG] = "iv_neg", [OP_ABS] = "iv_absolute",    [OP_SIGN] = "iv_sign", [OP_FLOOR] = "iv_floor",
    [OP_NOT] = "iv_not", [OP_STOP_GRAD] = "",         [OP_EXP] = "iv_exp",   [OP_EXPM1] = "iv_expm1",
    [OP_LOG] = "iv_log", [OP_LOG1P] = "iv_log1p",     [OP_SQRT] = "iv_sqrt", [OP_TANH] = "iv_tanh",
    [OP_ERF] = "iv_erf", [OP_SIGMOID] = "iv_sigmoid",
};
static const char *const range_binary[OP_COUNT] = {
    [OP_MAX] = "iv_maximum", [OP_MIN] = "iv_minimum", [OP_EQ] = "iv_eq", [OP_NE] = "iv_ne", [OP_LT] = "iv_lt", [OP_LE] = "iv_le",
    [OP_GT] = "iv_gt", [OP_GE] = "iv_ge", [OP_AND] = "iv_and", [OP_OR] = "iv_or", [OP_XOR] = "iv_xor",
};
static const char *const range_rounded[OP_COUNT] = {
    [OP_ADD] = "iv_add", [OP_SUB] = "iv_sub",           [OP_MUL] = "iv_mul",
    [OP_DIV] = "iv_div", [OP_FLOORDIV] = "iv_floordiv", [OP_MOD] = "iv_mod",
};

static const char *range_cast(DType from, DType to) {
    if (to == DT_BOOL) return "iv_to_bool";
    if (from == DT_BOOL) return "";
    if (to == DT_I64) return from == DT_I64 ? "" : "iv_float_to_int";
    return from == DT_I64 ? "iv_int_to_float" : "iv_widen";
}

static void range_instr(Str *s, const Program *p, const Instr *x) {
    OpKind op = (OpKind)(x->code - PROG_OP);
    bool f = dtype_is_float(x->dtype), bits = (op == OP_AND || op == OP_OR || op == OP_XOR) && x->dtype != DT_BOOL;
    if (op == OP_CAST) str_printf(s, "%s(r%d)", range_cast(p->instr[x->a].dtype, x->dtype), x->a);
    else if (op == OP_WHERE) str_printf(s, "iv_where(r%d, r%d, r%d)", x->a, x->b, x->c);
    else if (range_unary[op]) str_printf(s, "%s(r%d)", range_unary[op], x->a);
    else if (range_binary[op] && !bits) str_printf(s, "%s(r%d, r%d)", range_binary[op], x->a, x->b);
    else if (range_rounded[op]) str_printf(s, "%s(r%d, r%d, %s)", range_rounded[op], x->a, x->b, f ? "true" : "false");
    else str_add(s, "iv_unknown()");
}

static void range_code(const Program *p, Str *s) {
    str_add(s,
            "GPU_FN FlashRange flash_vec_range(const FlashParams &p, int slot, i64 lb, i64 lh, i64 block) {\n"
            "    const FlashVec &v = p.vec[slot];\n"
            "    i64 nblock = (v.len + FLASH_BLOCK - 1) / FLASH_BLOCK, row = (lb * v.stride_b + lh * v.stride_h) / v.len;\n"
            "    return v.range[row * nblock + (v.len == 1 ? 0 : block)];\n}\n"
            "GPU_FN void flash_program_range(const FlashParams &p, FlashRange b, FlashRange h, FlashRange q, FlashRange k, i64 "
            "lb, i64 lh,\n"
            "                                i64 qb, i64 kb, FlashRange *visible, FlashRange *bias) {\n");
    for (int i = 0; i < p->ninstr; i++) {
        const Instr *x = &p->instr[i];
        str_printf(s, "    const FlashRange r%d = %s(", i, x->dtype == DT_BOOL ? "iv_truth" : "");
        switch (x->code) {
        case PROG_CONST:
            str_add(s, "iv_point((double)(");
            expr_constant(s, x->dtype, x->imm);
            str_add(s, "))");
            break;
        case PROG_INDEX_B: str_add(s, "b"); break;
        case PROG_INDEX_H: str_add(s, "h"); break;
        case PROG_INDEX_Q: str_add(s, "q"); break;
        case PROG_INDEX_K: str_add(s, "k"); break;
        case PROG_VEC_Q: str_printf(s, "flash_vec_range(p, %d, lb, lh, qb)", x->a); break;
        case PROG_VEC_K: str_printf(s, "flash_vec_range(p, %d, lb, lh, kb)", x->a); break;
        default: range_instr(s, p, x);
        }
        str_add(s, ");\n");
    }
    if (output_of(p, 0) >= 0) str_printf(s, "    *visible = r%d;\n", output_of(p, 0));
    if (output_of(p, 1) >= 0) str_printf(s, "    *bias = r%d;\n", output_of(p, 1));
    str_add(s, "}\n");
}

// How flash_ranges reads a vector of each slot.
static void vector_code(const Operand *vec, int nvec, Str *s) {
    str_add(s, "GPU_FN double flash_vec_value(const void *data, int slot, i64 i) {\n    switch (slot) {\n");
    for (int i = 0; i < nvec; i++)
        str_printf(s, "    case %d: return (double)%s((const %s *)data)[i]%s;\n", i, vec[i].dtype == DT_BF16 ? "to_float(" : "(",
                   expr_memory_type(vec[i].dtype), vec[i].dtype == DT_BOOL ? " != 0)" : ")");
    str_add(s, "    default: return 0;\n    }\n}\n");
    // Doubles hold integers exactly only so far.
    str_add(s, "GPU_FN bool flash_vec_exact(int slot) {\n    switch (slot) {\n");
    for (int i = 0; i < nvec; i++)
        if (vec[i].dtype == DT_I64) str_printf(s, "    case %d: return false;\n", i);
    str_add(s, "    default: return true;\n    }\n}\n");
}

// ---- all of it ------------------------------------------------------------------------------------------------------------
Status flash_source(const Node *n, const Operand *in, const Operand *out, bool tensor, Str *s, Diag *d) {
    const Program *p = node_prog(n, ATTR_PROG);
    bool grad = n->op == OP_ATTENTION_GRAD;
    FlashForm f = flash_form(n, in, out);
    int first = flash_first_vec(n);
    for (int i = first; i < n->nin; i++)
        if (in[i].dtype == DT_BF16 || !expr_memory_type(in[i].dtype))
            return diag_error(d, ST_UNSUPPORTED, "vector %d of an attention mask is %s, not float32, i64 or bool", i - first,
                              dtype_name(in[i].dtype));
    str_add(s, "#include \"gpu.h\"\n");
    str_printf(s, "typedef %s TQ;\ntypedef %s TL;\ntypedef %s TG;\n", expr_memory_type(in[0].dtype),
               expr_memory_type(grad ? in[4].dtype : out[1].dtype), expr_memory_type(out[0].dtype));
    str_printf(
        s, "#define FLASH_D %lld\n#define FLASH_DV %lld\n#define FLASH_VISIBLE %d\n#define FLASH_BIAS %d\n#define FLASH_RAW %d\n",
        (long long)in[0].dim[3], (long long)in[2].dim[3], f.visible, f.bias, f.raw);
    str_printf(s,
               "#define FLASH_SOFTCAP %d\n#define FLASH_DROPOUT %d\n#define FLASH_MASKED_ROW %d\n#define FLASH_MT %d\n#define "
               "FLASH_TENSOR %d\n",
               node_float_or(n, ATTR_SOFTCAP, 0) != 0, node_float_or(n, ATTR_DROPOUT, 0) > 0,
               (int)node_int_or(n, ATTR_MASKED_ROW, 0), f.mt, tensor);
    str_add(s, flash_params_h_text);
    if (f.visible || f.bias) {
        str_add(s, expr_prelude_text);
        str_add(s, flash_interval_h_text);
        TRY(element_code(p, in + first, s, d));
        range_code(p, s);
        vector_code(in + first, n->nin - first, s);
    }
    str_add(s, flash_common_h_text);
    str_add(s, flash_kernel_h_text);
    if (grad) str_add(s, flash_backward_h_text);
    if (tensor) str_add(s, flash_mma_h_text);
    if (tensor) str_add(s, grad ? flash_mma_backward_h_text : flash_mma_forward_h_text);
    return ST_OK;
}
