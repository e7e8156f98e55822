// Pointwise ops and fused groups of them: programs for the block interpreter (vm.h).
#include "backend/cpu/kernels.h"
#include "backend/cpu/vm.h"

typedef struct OneOp {  // a pointwise node as a program: its operands, then the op
    Instr instr[4];
    int32_t out;
    Program program;
} OneOp;

static void one_op(const Node *n, const Operand *in, const Operand *out, OneOp *o) {
    for (int i = 0; i < n->nin; i++) o->instr[i] = (Instr){.code = PROG_INPUT, .dtype = in[i].dtype, .a = i, .b = -1, .c = -1};
    o->instr[n->nin] = (Instr){.code = PROG_OP + n->op, .dtype = out[0].dtype, .a = 0, .b = -1, .c = -1};
    if (n->nin > 1) o->instr[n->nin].b = 1;
    if (n->nin > 2) o->instr[n->nin].c = 2;
    o->out = n->nin;
    o->program = (Program){.ninstr = n->nin + 1, .instr = o->instr, .nout = 1, .out = &o->out};
}

Status cpu_pointwise(const KernelArgs *k, Diag *d) {
    OneOp o;
    one_op(k->node, k->in, k->out, &o);
    return vm_run(&o.program, k, d);
}

size_t cpu_pointwise_scratch(const Node *n, const Operand *in, const Operand *out, int nthreads) {
    OneOp o;
    one_op(n, in, out, &o);
    return vm_scratch(&o.program, n->nin, in, out, nthreads);
}

Status cpu_fused(const KernelArgs *k, Diag *d) { return vm_run(node_prog(k->node, ATTR_PROG), k, d); }

size_t cpu_fused_scratch(const Node *n, const Operand *in, const Operand *out, int nthreads) {
    return vm_scratch(node_prog(n, ATTR_PROG), n->nin, in, out, nthreads);
}
