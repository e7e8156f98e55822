// Instructions as C expressions: see codegen_expr.h. What they mean is defined by the CPU's loops (cpu/vm_impl.h, cpu/vm_ops.c).
#include "backend/cuda/fused/codegen_expr.h"
#include <math.h>
#include "ops/op.h"

// Comparisons of max and min are written so that a NaN on either side is the result; integer arithmetic wraps around.
const char expr_prelude_text[] =
    "#if defined(GPU_EMULATE)\n"
    "GPU_FN float gx_rsqrt(float a) { return 1.0f / sqrtf(a); }\n"
    "GPU_FN float gx_exp_fast(float a) { return expf(a); }\n"
    "GPU_FN float gx_div_fast(float a, float b) { return a / b; }\n"
    "GPU_FN float gx_larger(float a, float b) { return a != a || a > b ? a : b; }\n"
    "#else\n"
    "GPU_FN float gx_rsqrt(float a) { return rsqrtf(a); }\n"
    "GPU_FN float gx_exp_fast(float a) { return __expf(a); }\n"
    "GPU_FN float gx_div_fast(float a, float b) { return __fdividef(a, b); }\n"
    "GPU_FN float gx_larger(float a, float b) {\n"
    "    float m;\n"
    "    asm(\"max.NaN.f32 %0, %1, %2;\" : \"=f\"(m) : \"f\"(a), \"f\"(b));\n"
    "    return m;\n"
    "}\n"
    "#endif\n"
    // a / b as (a * scale) * inverse: the scale keeps the inverse of a very small b finite, so that 0 / b stays 0 and so on.
    "struct GxInverse { float scale, inverse; };\n"
    "GPU_FN GxInverse gx_inverse(float b) {\n"
    "    const float scale = fabsf(b) < 7.88860905e-31f ? 1.84467441e19f : 1.0f;  // 2^-100, 2^64\n"
    "    return GxInverse{scale, 1.0f / (b * scale)};\n"
    "}\n"
    "GPU_FN float gx_div_by(float a, GxInverse d) { return a * d.scale * d.inverse; }\n"
    "GPU_FN float gx_round_bf16(float a) { return to_float(to_bf16(a)); }\n"
    "GPU_FN float gx_max(float a, float b) { return a != a || a > b ? a : b; }\n"
    "GPU_FN float gx_min(float a, float b) { return a != a || a < b ? a : b; }\n"
    "GPU_FN i64 gx_max(i64 a, i64 b) { return a > b ? a : b; }\n"
    "GPU_FN i64 gx_min(i64 a, i64 b) { return a < b ? a : b; }\n"
    "GPU_FN bool gx_max(bool a, bool b) { return a || b; }\n"
    "GPU_FN bool gx_min(bool a, bool b) { return a && b; }\n"
    "GPU_FN float gx_sign(float a) { return (float)((a > 0) - (a < 0)); }\n"
    "GPU_FN i64 gx_sign(i64 a) { return (a > 0) - (a < 0); }\n"
    "GPU_FN float gx_mod(float a, float b) {\n"
    "    float m = fmodf(a, b);\n"
    "    return m != 0 && (m < 0) != (b < 0) ? m + b : m;\n"
    "}\n"
    "GPU_FN float gx_floordiv(float a, float b) {\n"
    "    if (b == 0) return a / b;\n"
    "    float q = (a - gx_mod(a, b)) / b, f = floorf(q);\n"
    "    return q - f > 0.5f ? f + 1 : f;\n"
    "}\n"
    "GPU_FN i64 gx_floordiv(i64 a, i64 b) {\n"
    "    if (b == 0) return 0;\n"
    "    if (b == -1) return (i64)(0 - (u64)a);\n"
    "    return a / b - (a % b != 0 && (a < 0) != (b < 0));\n"
    "}\n"
    "GPU_FN i64 gx_mod(i64 a, i64 b) {\n"
    "    if (b == 0 || b == -1) return 0;\n"
    "    i64 m = a % b;\n"
    "    return m != 0 && (m < 0) != (b < 0) ? m + b : m;\n"
    "}\n"
    "GPU_FN i64 gx_divisor(i64 b, int &zero) { if (b == 0) zero = 1; return b; }\n"
    "GPU_FN i64 gx_pow(i64 a, i64 b) {\n"
    "    if (b < 0) return a == 1 ? 1 : a == -1 ? (b & 1 ? -1 : 1) : 0;\n"
    "    u64 r = 1, base = (u64)a;\n"
    "    for (; b > 0; b >>= 1, base *= base)\n"
    "        if (b & 1) r *= base;\n"
    "    return (i64)r;\n"
    "}\n"
    // Outside i64 (and NaN): the smallest integer, as on the CPU.
    "GPU_FN i64 gx_to_i64(float a) {\n"
    "    return a > -9223372036854775808.0f && a < 9223372036854775808.0f ? (i64)a : (i64)(1ull << 63);\n"
    "}\n";

const char *expr_register_type(DType t) {
    return t == DT_F32 || t == DT_BF16 ? "float" : t == DT_I64 ? "i64" : t == DT_BOOL ? "bool" : NULL;
}

const char *expr_memory_type(DType t) {
    return t == DT_F32 ? "float" : t == DT_BF16 ? "bf16" : t == DT_I64 ? "i64" : t == DT_BOOL ? "u8" : NULL;
}

void expr_constant(Str *out, DType t, double value) {
    if (t == DT_BOOL) {
        str_add(out, value != 0 ? "true" : "false");
    } else if (t == DT_I64) {
        int64_t v = (int64_t)value;
        if (v == INT64_MIN) str_add(out, "((i64)(1ull << 63))");
        else str_printf(out, "(i64)%lld", (long long)v);
    } else {  // %.9g brings every float back
        float f = (float)value;
        uint32_t bits;
        memcpy(&bits, &f, sizeof bits);
        if (!isfinite(f)) str_printf(out, "gpu_bits_float(0x%xu)", bits);
        else if (floorf(f) == f && fabsf(f) < 1e6f && (f != 0 || !signbit(f))) str_printf(out, "%.1ff", (double)f);
        else str_printf(out, "gpu_bits_float(0x%xu) /* %.9g */", bits, (double)f);
    }
}

// $ stands for the first operand, @ for the second, # for the third.
static void add_template(Str *out, const char *text, const char *const operand[3]) {
    for (const char *c = text; *c; c++) {
        if (*c == '$') str_add(out, operand[0]);
        else if (*c == '@') str_add(out, operand[1]);
        else if (*c == '#') str_add(out, operand[2]);
        else str_addn(out, c, 1);
    }
}

static const char *const float_text[OP_COUNT] = {
    [OP_NEG] = "-$", [OP_ABS] = "fabsf($)", [OP_SIGN] = "gx_sign($)", [OP_EXP] = "expf($)", [OP_EXPM1] = "expm1f($)",
    [OP_LOG] = "logf($)", [OP_LOG1P] = "log1pf($)", [OP_SQRT] = "sqrtf($)", [OP_RSQRT] = "gx_rsqrt($)", [OP_SIN] = "sinf($)",
    [OP_COS] = "cosf($)", [OP_TANH] = "tanhf($)", [OP_SIGMOID] = "1.0f / (1.0f + expf(-$))", [OP_ERF] = "erff($)",
    [OP_FLOOR] = "floorf($)", [OP_SILU] = "$ / (1.0f + expf(-$))",
    [OP_GELU] = "0.5f * $ * (1.0f + erff($ * 0.707106781f))",
    [OP_GELU_TANH] = "0.5f * $ * (1.0f + tanhf(0.797884561f * ($ + 0.044715f * $ * $ * $)))",
    [OP_STOP_GRAD] = "$", [OP_ADD] = "$ + @", [OP_SUB] = "$ - @", [OP_MUL] = "$ * @", [OP_DIV] = "$ / @",
    [OP_POW] = "powf($, @)", [OP_MAX] = "gx_max($, @)", [OP_MIN] = "gx_min($, @)", [OP_FLOORDIV] = "gx_floordiv($, @)",
    [OP_MOD] = "gx_mod($, @)", [OP_EQ] = "$ == @", [OP_NE] = "$ != @", [OP_LT] = "$ < @", [OP_LE] = "$ <= @", [OP_GT] = "$ > @",
    [OP_GE] = "$ >= @", [OP_WHERE] = "$ ? @ : #",
};
static const char *const fast_text[OP_COUNT] = {
    [OP_EXP] = "gx_exp_fast($)", [OP_SIGMOID] = "gx_div_fast(1.0f, 1.0f + gx_exp_fast(-$))",
    [OP_SILU] = "gx_div_fast($, 1.0f + gx_exp_fast(-$))",
};
static const char *const i64_text[OP_COUNT] = {
    [OP_NEG] = "(i64)(0 - (u64)$)", [OP_ABS] = "(i64)($ < 0 ? 0 - (u64)$ : (u64)$)", [OP_SIGN] = "gx_sign($)",
    [OP_STOP_GRAD] = "$", [OP_ADD] = "(i64)((u64)$ + (u64)@)", [OP_SUB] = "(i64)((u64)$ - (u64)@)",
    [OP_MUL] = "(i64)((u64)$ * (u64)@)", [OP_POW] = "gx_pow($, @)", [OP_MAX] = "gx_max($, @)", [OP_MIN] = "gx_min($, @)",
    [OP_FLOORDIV] = "gx_floordiv($, @)", [OP_MOD] = "gx_mod($, @)", [OP_EQ] = "$ == @", [OP_NE] = "$ != @", [OP_LT] = "$ < @",
    [OP_LE] = "$ <= @", [OP_GT] = "$ > @", [OP_GE] = "$ >= @", [OP_AND] = "$ & @", [OP_OR] = "$ | @", [OP_XOR] = "$ ^ @",
    [OP_WHERE] = "$ ? @ : #",
};
static const char *const bool_text[OP_COUNT] = {
    [OP_NOT] = "!$", [OP_STOP_GRAD] = "$", [OP_MAX] = "gx_max($, @)", [OP_MIN] = "gx_min($, @)", [OP_EQ] = "$ == @",
    [OP_NE] = "$ != @", [OP_LT] = "!$ && @", [OP_LE] = "!$ || @", [OP_GT] = "$ && !@", [OP_GE] = "$ || !@", [OP_AND] = "$ && @",
    [OP_OR] = "$ || @", [OP_XOR] = "$ != @", [OP_WHERE] = "$ ? @ : #",
};

static const char *cast_text(DType from, DType to) {
    bool f = expr_register_type(from) && !strcmp(expr_register_type(from), "float");
    switch (to) {
    case DT_F32: return f ? "$" : from == DT_I64 ? "(float)$" : "($ ? 1.0f : 0.0f)";
    case DT_BF16:
        if (from == DT_BF16) return "$";
        return f ? "gx_round_bf16($)" : from == DT_I64 ? "gx_round_bf16((float)$)" : "($ ? 1.0f : 0.0f)";
    case DT_I64: return f ? "gx_to_i64($)" : from == DT_I64 ? "$" : "($ ? (i64)1 : (i64)0)";
    case DT_BOOL: return from == DT_BOOL ? "$" : "$ != 0";
    default: return NULL;
    }
}

// Small whole exponents are products, as on the CPU.
static const char *pow_text(const Program *p, const Instr *x) {
    const Instr *e = &p->instr[x->b];
    if (e->code != PROG_CONST) return float_text[OP_POW];
    return e->imm == 2 ? "$ * $" : e->imm == 3 ? "$ * $ * $" : e->imm == 1 ? "$" : e->imm == -1 ? "1.0f / $" : float_text[OP_POW];
}

static const char *op_text(const Program *p, const Instr *x, OpKind op, DType in, const ExprOptions *opt) {
    if (!expr_register_type(in) || !expr_register_type(x->dtype)) return NULL;
    if (op == OP_CAST) return cast_text(in, x->dtype);
    if (in == DT_I64) return i64_text[op];
    if (in == DT_BOOL) return bool_text[op];
    if (op == OP_POW) return pow_text(p, x);
    return opt->fast && fast_text[op] ? fast_text[op] : float_text[op];
}

Status expr_instr(Str *out, const Program *p, int i, const char *const operand[3], const ExprOptions *opt, Diag *d) {
    const Instr *x = &p->instr[i];
    if (x->code == PROG_CONST) {
        if (!expr_register_type(x->dtype))
            return diag_error(d, ST_UNSUPPORTED, "the GPU has no constants of %s", dtype_name(x->dtype));
        expr_constant(out, x->dtype, x->imm);
        return ST_OK;
    }
    CHECK(x->code >= PROG_OP, "leaf %d is the caller's", x->code);
    OpKind op = (OpKind)(x->code - PROG_OP);
    const int32_t use[3] = {x->a, x->b, x->c};
    DType in = p->instr[use[program_op_arity(op) - 1]].dtype;
    const char *text = op_text(p, x, op, in, opt);
    if (!text)
        return diag_error(d, ST_UNSUPPORTED, "the GPU has no %s of %s giving %s: use float32 or bfloat16", op_name(op),
                          dtype_name(in), dtype_name(x->dtype));
    const char *name[3] = {operand[0], operand[1], operand[2]};
    Str divisor = {0};
    bool divides = in == DT_I64 && (op == OP_FLOORDIV || op == OP_MOD);
    const Instr *by = divides ? &p->instr[x->b] : NULL;
    if (divides && opt->zero && !(by->code == PROG_CONST && by->imm != 0)) {
        str_printf(&divisor, "gx_divisor(%s, %s)", name[1], opt->zero);
        name[1] = divisor.data;
    }
    bool rounds = x->dtype == DT_BF16 && op != OP_CAST && op != OP_STOP_GRAD && op != OP_WHERE;
    if (rounds) str_add(out, "gx_round_bf16(");
    add_template(out, text, name);
    if (rounds) str_add(out, ")");
    str_free(&divisor);
    return ST_OK;
}
