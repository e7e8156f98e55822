// Whether runs give cuDNN all operands of its graphs, and what comes of one that is not given.
#include <math.h>
#include <string.h>
#include "attention_probe.h"
#include "backend/cuda/attention/dnn_run.h"
#include "backend/cuda/device/libs.h"

// Needs no GPU: every form of a call, its graph's operands and those that its run is given.
int run_operands(void) {
    const CudnnLib *lib;
    Diag d = {0};
    if (libs_cudnn(&lib, &d) != ST_OK) return printf("%s\n", d.text), 2;
    static DnnGraph g;
    Dnn dnn = {.lib = lib};
    enum { FORMS = 3 * 2 * 3 * 2 * 2 };  // masks, shifted, plain and cut and packed, heads in groups, backward
    for (int i = 0; i < FORMS; i++) {
        int mask = i % 3, shift = i / 3 % 2, form = i / 6 % 3, groups = i / 18 % 2, backward = i / 36;
        DnnCall c = {.batch = 1, .heads = 4, .kv_heads = groups ? 2 : 4, .nq = 192, .nk = 256, .dim = 64,
                     .mask = (DnnMaskKind)mask, .shift = 60 * shift, .window = 200, .scale = 0.125, .backward = backward, .cut = form == 1};
        if (form == 2) c.nk = c.nq, c.slots = 4;
        if (dnn_refuses(&c)) continue;
        DnnRun r = dnn_run_of(&c);
        DnnAttention a = dnn_group(&r);
        DnnOperands x = dnn_operands(&r, &(DnnData){0}, NULL);
        dnn_graph_begin(&g, &dnn);
        if (backward)
            dnn_build_backward(&g, &a);
        else
            dnn_build_forward(&g, &a);
        printf("operands: mask %d shift %d form %d heads 4/%lld %s: graph %#llx, run %#llx %s", mask, shift * 60, form,
               (long long)c.kv_heads, backward ? "backward" : "forward", (unsigned long long)g.operands,
               (unsigned long long)dnn_given(&x), g.error.text);
        verdict(g.error.status == ST_OK && g.operands == dnn_given(&x));
        dnn_graph_end(&g);
    }
    printf("%s: %d passed, %d failed\n", nfail ? "FAIL" : "PASS", npass, nfail);
    return nfail || npass < FORMS / 2;
}

typedef struct Missing {
    Dnn dnn;
    cudnnBackendDescriptor_t plan;
    int64_t uid;  // left out; 0: none
} Missing;

static Status execute_without(void *context, const DnnOperands *x, void *workspace, Diag *d) {
    Missing *m = context;
    DnnOperands y = {0};
    for (int i = 0; i < x->n; i++)
        if (x->uid[i] != m->uid) y.uid[y.n] = x->uid[i], y.data[y.n++] = x->data[i];
    return dnn_plan_run(&m->dnn, m->plan, y.n, y.uid, y.data, workspace, d);
}

static Status plan_without(Missing *m, const DnnRun *r, Diag *d) {
    static DnnGraph g;
    DnnEngine e;
    DnnAttention a = dnn_group(r);
    TRY(dnn_open(&m->dnn, device.stream, d));
    dnn_graph_begin(&g, &m->dnn);
    dnn_build_backward(&g, &a);
    Status st = dnn_graph_plan(&g, r->parts.workspace_nbytes, &m->plan, &e, d);
    dnn_graph_end(&g);
    return st;
}

// The plain backward of the cut form with and without its lengths of queries. The latter is not counted: it shows what cuDNN
// makes of an operand that it is not given, why dnn.c looks at each run. It may end the process's CUDA context, and so is a part of
// its own.
void run_missing(int64_t n) {
    Case k = {"plain cut", 1, 8, 2, n, n, 64, DNN_CAUSAL, 0, 0, 1, false};
    DnnCall c = call_of(&k), cb = c;
    cb.backward = true;
    DnnRun r = dnn_run_of(&cb);
    int32_t lengths[2] = {(int32_t)n, (int32_t)n};
    Operands x;
    DnnPlan *f;
    Missing m = {0};
    Diag d = {0};
    CHECK(r.groups.batch == 1, "lengths of one entry");
    bool ok = make_operands(&x, &c, false) && to_device((void **)&r.lengths, lengths, sizeof lengths);
    ok = ok && prepare(&c, false, &f) == ST_OK;
    DnnData data = data_of(&x);
    ok = ok && run(f, &data, x.scratch) == ST_OK && plan_without(&m, &r, &d) == ST_OK;
    for (int without = 0; without < 2 && ok; without++) {
        m.uid = without ? DNN_NQ : 0;
        counted = !without;
        printf("%-24s n%lld %s the lengths of queries:", k.name, (long long)n, without ? "without" : "with");
        bool right = dnn_run_groups(&device, &r, &data, x.scratch, execute_without, &m, &d) == ST_OK && fetch_results(&x);
        if (d.status != ST_OK) printf(" %s", d.text);
        Errors errors;
        if (right) check_all(&c, &x, 1009, 1009, false, &errors), right = report(&errors, 10);
        verdict(right);
    }
    counted = true;
    if (!ok) printf("%s", d.text), verdict(false);
    free_operands(&x);
}
