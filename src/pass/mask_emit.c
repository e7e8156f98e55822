// The attention node: its program without what it does not use, and the vectors that the program reads, as values.
#include "pass/mask.h"

// Instructions that out[] needs, renumbered; slot_of[s] >= 0 for the slots that remain, in order of first use.
static Program compact(const MaskProg *m, const int32_t out[2], Instr *instr, int32_t *slot_of, int *nslot, int32_t *new_out) {
    int n = (int)m->instr.len;
    bool *used = calloc((size_t)n + 1, 1);
    int32_t *number = calloc((size_t)n + 1, sizeof *number);
    for (int k = 0; k < 2; k++)
        if (out[k] >= 0) used[out[k]] = true;
    for (int i = n - 1; i >= 0; i--) {
        const Instr *x = &m->instr.data[i];
        if (!used[i] || x->code < PROG_OP) continue;
        const int32_t operand[3] = {x->a, x->b, x->c};
        for (int k = 0; k < 3; k++)
            if (operand[k] >= 0) used[operand[k]] = true;
    }
    int count = 0;
    for (int i = 0; i < n; i++) {
        if (!used[i]) continue;
        Instr x = m->instr.data[i];
        if (x.code == PROG_VEC_Q || x.code == PROG_VEC_K) {
            if (slot_of[x.a] < 0) slot_of[x.a] = (*nslot)++;
            x.a = slot_of[x.a];
        } else if (x.code >= PROG_OP) {
            x.a = x.a < 0 ? -1 : number[x.a];
            x.b = x.b < 0 ? -1 : number[x.b];
            x.c = x.c < 0 ? -1 : number[x.c];
        }
        number[i] = count;
        instr[count++] = x;
    }
    for (int k = 0; k < 2; k++) new_out[k] = out[k] < 0 ? -1 : number[out[k]];
    free(used);
    free(number);
    return (Program){.ninstr = count, .instr = instr, .nout = 2, .out = new_out};
}

static ValueId emit_data(MaskPass *p, const MaskSlot *s) {
    Shape shape = SHAPE(1, s->nh, s->nl);
    int64_t n = s->nh * s->nl;
    void *bytes = arena_alloc(p->r.out->arena, (size_t)n * (size_t)dtype_nbytes(s->dtype));
    for (int64_t i = 0; i < n; i++) {
        if (s->dtype == DT_F32) ((float *)bytes)[i] = (float)s->data[i];
        else if (s->dtype == DT_F64) ((double *)bytes)[i] = s->data[i];
        else if (s->dtype == DT_I64) ((int64_t *)bytes)[i] = (int64_t)s->data[i];
        else ((uint8_t *)bytes)[i] = s->data[i] != 0;
    }
    Attr a = attr_i(ATTR_INDEX, rewrite_add_const(p->r.out, shape, s->dtype, bytes));
    return build(&p->r.b, OP_CONSTANT, 0, NULL, 1, &a);
}

// A slot's value as [B|1, H|1, L|1].
static ValueId emit_vector(MaskPass *p, const MaskSlot *s) {
    if (s->value == NO_VALUE) return emit_data(p, s);
    Builder *b = &p->r.b;
    ValueId x = p->r.map[s->value];
    Shape kept = {0}, out = SHAPE(1, 1, 1);
    static const char letter[3] = {'b', 'h', 'l'};
    int at[3] = {-1, -1, -1}, order[3], n = 0;
    for (int d = 0; d < s->shape.ndim; d++) {
        x = build_slice(b, x, d, s->dim[d].start, 1, s->dim[d].length);
        for (int k = 0; k < 3; k++) {
            if (s->dim[d].index != letter[k]) continue;
            at[k] = kept.ndim;
            out.dim[k] = kept.dim[kept.ndim++] = s->dim[d].length;
        }
    }
    for (int k = 0; k < 3; k++)
        if (at[k] >= 0) order[n++] = at[k];
    x = build_reshape(b, x, kept);
    if (n > 1 && x != NO_VALUE) x = build_permute(b, x, order);
    return build_reshape(b, x, out);
}

ValueId mask_emit_attention(MaskPass *p, MaskProg *m, ValueId q, ValueId k, ValueId v, const AttentionSpec *spec) {
    double yes;
    int visible = mask_number(m, spec->visible, &yes) && yes != 0 ? -1 : spec->visible;
    int32_t out[2] = {visible, spec->bias}, new_out[2];
    int32_t *slot_of = ARENA_ARRAY(p->scratch, int32_t, m->slot.len + 1);
    Instr *instr = ARENA_ARRAY(p->scratch, Instr, m->instr.len + 1);
    for (int64_t i = 0; i < m->slot.len; i++) slot_of[i] = -1;
    int nslot = 0, nattr = 0;
    Program prog = compact(m, out, instr, slot_of, &nslot, new_out);
    ValueId *in = ARENA_ARRAY(p->scratch, ValueId, 3 + nslot);
    in[0] = q, in[1] = k, in[2] = v;
    for (int64_t i = 0; i < m->slot.len; i++)
        if (slot_of[i] >= 0) in[3 + slot_of[i]] = emit_vector(p, &m->slot.data[i]);
    if (p->r.b.status != ST_OK) return NO_VALUE;
    Attr attr[8];
    attr[nattr++] = attr_f(ATTR_SCALE, spec->scale);
    if (spec->softcap != 0) attr[nattr++] = attr_f(ATTR_SOFTCAP, spec->softcap);
    if (spec->dropout != 0) attr[nattr++] = attr_f(ATTR_DROPOUT, spec->dropout), attr[nattr++] = attr_i(ATTR_SEED, spec->seed);
    attr[nattr++] = attr_i(ATTR_MASKED_ROW, spec->masked_row);
    if (prog.ninstr > 0) attr[nattr++] = attr_prog(ATTR_PROG, &prog);
    int64_t monotone = mask_monotone(p->r.out, nslot, in + 3);
    if (monotone) attr[nattr++] = attr_i(ATTR_MONOTONE, monotone);
    if (monotone && p->max_documents > 0) attr[nattr++] = attr_i(ATTR_DOCUMENTS, p->max_documents);
    return build(&p->r.b, OP_ATTENTION, 3 + nslot, in, nattr, attr);
}
