// The part of gpu_attention.c about packed documents; included there once, after what it uses.
#pragma once
// ---- packed documents
// ---------------------------------------------------------------------------------------------------------------
typedef struct PackedCase {
    const char *name;
    int64_t b, h, hkv, n, d;
    DnnMaskKind mask;
    int64_t slots;  // 0: as they are planned for so many documents
    int how;        // documents: below
    bool negative;  // log-sum-exp below -88
} PackedCase;
enum { ONE = -1, SINGLES = -2, UNEVEN = -3 };  // else: so many, as even as they come

// Lengths that are no multiple of anything, single tokens among them; another packing for each batch entry.
static int64_t next_length(int how, int64_t n, int64_t at, int64_t i, int64_t b) {
    static const int64_t uneven[] = {1, 130, 1, 1, 63, 200, 128, 7, 64, 257, 1, 31};
    if (how == ONE) return n;
    if (how == SINGLES) return 1;
    if (how == UNEVEN) return uneven[(i + 5 * b) % 12];
    return (i + 1) * n / how - at;
}

static bool make_documents(Operands *x, const PackedCase *k, int64_t *ndocument) {
    size_t nbytes = (size_t)(k->b * k->n) * 8;
    x->ids = malloc(nbytes), x->first = malloc(nbytes), x->end = malloc(nbytes);
    *ndocument = 0;
    for (int64_t b = 0; b < k->b; b++) {
        int64_t i = 0;
        for (int64_t at = 0, len; at < k->n; at += len, i++) {
            len = next_length(k->how, k->n, at, i, b);
            if (at + len > k->n) len = k->n - at;
            for (int64_t j = at; j < at + len; j++)
                x->ids[b * k->n + j] = 3 * i - 1, x->first[b * k->n + j] = at, x->end[b * k->n + j] = at + len;
        }
        if (i > *ndocument) *ndocument = i;
    }
    return to_device(&x->gids, x->ids, nbytes);
}

static int64_t most_documents(const PackedCase *k) {
    int64_t most = 0;
    for (int64_t b = 0; b < k->b; b++) {
        int64_t i = 0;
        for (int64_t at = 0; at < k->n; i++) at += next_length(k->how, k->n, at, i, b);
        if (i > most) most = i;
    }
    return most;
}

static DnnCall packed_call(const PackedCase *k) {
    return (DnnCall){.batch = k->b, .heads = k->h, .kv_heads = k->hkv, .nq = k->n, .nk = k->n, .dim = k->d, .mask = k->mask,
                     .scale = 1 / sqrt((double)k->d), .cut = -1,
                     .slots = k->slots ? k->slots : dnn_slots(most_documents(k), k->n)};
}

static DeviceError device_error(void) {
    DeviceError e = {0};
    cuda_ok(cudaStreamSynchronize(device.stream), "run");
    cuda_ok(cudaMemcpy(&e, device.error, sizeof e, cudaMemcpyDeviceToHost), "error record");
    cuda_ok(cudaMemset(device.error, 0, sizeof e), "error record");
    return e;
}

static bool start_packed(const PackedCase *k, Operands *x, DnnPlan **f, DnnPlan **b, int64_t *ndocument) {
    DnnCall c = packed_call(k);
    printf("%-24s b%lld h%lld/%lld n%lld d%lld %s slots %lld:", k->name, (long long)k->b, (long long)k->h, (long long)k->hkv,
           (long long)k->n, (long long)k->d, k->mask == DNN_FULL ? "full" : "causal", (long long)c.slots);
    bool ok = make_operands(x, &c, k->negative) && make_documents(x, k, ndocument);
    if (ok) printf(" %lld documents", (long long)*ndocument);
    return ok && prepare(&c, false, f) == ST_OK && prepare(&c, true, b) == ST_OK;
}

// Launched, or recorded into a CUDA graph and replayed.
static bool run_both(const DnnPlan *f, const DnnPlan *b, const Operands *x, bool captured) {
    DnnData data = data_of(x);
    if (!captured) return run(f, &data, x->scratch) == ST_OK && run(b, &data, x->scratch) == ST_OK;
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    if (!cuda_ok(cudaStreamBeginCapture(device.stream, cudaStreamCaptureModeThreadLocal), "begin capture")) return false;
    bool ok = run(f, &data, x->scratch) == ST_OK && run(b, &data, x->scratch) == ST_OK;
    ok = cuda_ok(cudaStreamEndCapture(device.stream, &graph), "end capture") && ok;
    ok = ok && cuda_ok(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
    for (int i = 0; i < 3 && ok; i++) ok = cuda_ok(cudaGraphLaunch(exec, device.stream), "launch");
    ok = cuda_ok(cudaStreamSynchronize(device.stream), "replay") && ok;
    if (exec) cudaGraphExecDestroy(exec);
    if (graph) cudaGraphDestroy(graph);
    return ok;
}

static void run_packed(const PackedCase *k, bool captured) {
    Operands x = {0};
    DnnPlan *f, *b;
    int64_t ndocument;
    bool ok = start_packed(k, &x, &f, &b, &ndocument) && run_both(f, b, &x, captured);
    DeviceError e = device_error();
    ok = ok && fetch_results(&x);
    if (ok && e.code) printf(" error %d: %lld of %lld", e.code, e.value, e.limit), ok = false;
    if (ok) {
        Errors errors;
        DnnCall c = packed_call(k);
        check_all(&c, &x, 1, 1, k->negative, &errors);
        ok = report(&errors, k->negative ? 200 : 10);
    }
    verdict(ok);
    free_operands(&x);
}

// What must be said: more documents than slots, numbers that fall.
static void run_packed_error(const char *name, int64_t slots, bool fall, int code, int64_t value, int64_t limit) {
    PackedCase k = {name, 1, 4, 2, 3000, 64, DNN_CAUSAL, slots, 9, false};
    Operands x = {0};
    DnnPlan *f, *b;
    int64_t ndocument;
    bool ok = start_packed(&k, &x, &f, &b, &ndocument);
    if (ok && fall) {
        x.ids[2500] = -5;
        ok = cuda_ok(cudaMemcpy(x.gids, x.ids, (size_t)k.n * 8, cudaMemcpyHostToDevice), "copy");
    }
    ok = ok && run_both(f, b, &x, false);
    DeviceError e = device_error();
    printf(" error %d, node %d, %lld of %lld", e.code, e.node, e.value, e.limit);
    verdict(ok && e.code == code && e.node == 7 && e.value == value && (fall || e.limit == limit));
    free_operands(&x);
}

static void run_packed_speed(const PackedCase *k) {
    Operands x = {0};
    DnnPlan *f, *b;
    int64_t ndocument;
    bool ok = start_packed(k, &x, &f, &b, &ndocument);
    DnnCall c = packed_call(k), cb = c;
    cb.backward = true;
    double pairs = 0;
    for (int64_t i = 0; i < k->n && ok; i++) pairs += (double)((k->mask == DNN_FULL ? x.end[i] : i + 1) - x.first[i]);
    double flops = 4 * pairs * (double)(k->d * k->h);
    DnnData data = data_of(&x);
    double t = ok ? seconds_of(f, &data, x.scratch, 10) : INFINITY, u = ok ? seconds_of(b, &data, x.scratch, 10) : INFINITY;
    printf("\n    forward %.3f ms %.0f TFLOP/s, backward %.3f ms %.0f TFLOP/s", t * 1e3, flops / t * 1e-12, u * 1e3,
           2.5 * flops / u * 1e-12);
    if (ok) print_facts("forward", &c, f), print_facts("backward", &cb, b);
    DeviceError e = device_error();
    ok = ok && e.code == 0 && fetch_results(&x);
    if (ok) {
        Errors errors;
        printf("\n    spots:");
        check_all(&c, &x, 4093, 4093, false, &errors);
        ok = report(&errors, 10);
    }
    verdict(ok);
    free_operands(&x);
}

static const PackedCase packed_cases[] = {
    {"one document", 1, 4, 4, 512, 64, DNN_CAUSAL, 4, ONE, false},
    {"two documents", 1, 4, 4, 512, 64, DNN_CAUSAL, 2, 2, false},
    {"spare slots", 1, 4, 4, 512, 64, DNN_CAUSAL, 16, 3, false},
    {"groups", 1, 8, 2, 512, 64, DNN_CAUSAL, 8, 3, false},
    {"groups, full", 1, 8, 2, 512, 64, DNN_FULL, 8, 3, false},
    {"uneven", 1, 4, 2, 1000, 64, DNN_CAUSAL, 0, UNEVEN, false},
    {"uneven, full", 1, 4, 2, 1000, 64, DNN_FULL, 0, UNEVEN, false},
    {"uneven 128", 1, 8, 2, 1000, 128, DNN_CAUSAL, 0, UNEVEN, false},
    {"uneven 128, full", 1, 8, 2, 1000, 128, DNN_FULL, 0, UNEVEN, false},
    {"uneven 16", 1, 4, 2, 777, 16, DNN_CAUSAL, 0, UNEVEN, false},
    {"uneven 80", 1, 4, 4, 777, 80, DNN_CAUSAL, 0, UNEVEN, false},
    {"uneven 96", 1, 4, 2, 777, 96, DNN_CAUSAL, 0, UNEVEN, false},
    {"negative", 1, 4, 2, 1000, 64, DNN_CAUSAL, 0, UNEVEN, true},
    {"negative, full", 1, 4, 2, 960, 128, DNN_FULL, 0, UNEVEN, true},
    {"single tokens", 1, 4, 2, 100, 64, DNN_CAUSAL, 128, SINGLES, false},
    {"single tokens, full", 1, 4, 2, 100, 64, DNN_FULL, 100, SINGLES, false},
    {"one token", 1, 4, 2, 1, 64, DNN_CAUSAL, 1, ONE, false},
    {"batch 3", 3, 4, 2, 700, 64, DNN_CAUSAL, 0, UNEVEN, false},
    {"batch 2, one KV head", 2, 6, 1, 1100, 64, DNN_CAUSAL, 0, UNEVEN, false},
    {"3 documents", 1, 8, 2, 1000, 64, DNN_CAUSAL, 0, 3, false},
    {"3 documents 128", 1, 8, 2, 1000, 128, DNN_CAUSAL, 0, 3, false},
    {"16 documents", 1, 8, 2, 2040, 64, DNN_CAUSAL, 0, 16, false},
    {"16 documents 128", 1, 8, 2, 2040, 128, DNN_CAUSAL, 0, 16, false},
    {"64 documents", 1, 4, 2, 4000, 64, DNN_CAUSAL, 0, 64, false},
    {"64 documents 128", 1, 4, 2, 4000, 128, DNN_CAUSAL, 0, 64, false},
    {"64 documents, full", 1, 4, 2, 4096, 64, DNN_FULL, 0, 64, false},
};

// `gpu_flash packed` has our own kernel's.
static const PackedCase packed_speeds[] = {
    {"16 documents", 1, 32, 8, 65536, 64, DNN_CAUSAL, 0, 16, false},
    {"16 in 64 slots", 1, 32, 8, 65536, 64, DNN_CAUSAL, 64, 16, false},
    {"64 documents", 1, 32, 8, 65536, 64, DNN_CAUSAL, 0, 64, false},
    {"16 documents 128", 1, 32, 8, 65536, 128, DNN_CAUSAL, 0, 16, false},
    {"64 documents 128", 1, 32, 8, 65536, 128, DNN_CAUSAL, 0, 64, false},
};

// Plain calls off the tile after packed ones: what the lengths of queries are given for.
static const Case cut_cases[] = {
    {"plain cut", 1, 4, 2, 1024, 1024, 64, DNN_CAUSAL, 0, 0, 1, false},
    {"plain off tile", 1, 4, 2, 960, 960, 64, DNN_CAUSAL, 0, 0, -1, false},
    {"plain off tile", 1, 4, 2, 192, 192, 64, DNN_CAUSAL, 0, 0, -1, true},
    {"plain off tile, full", 2, 4, 2, 200, 200, 128, DNN_FULL, 0, 0, -1, true},
};

// ---- an operand that is not given
// ----------------------------------------------------------------------------------------------
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
// makes of an operand that it is not given, why dnn.c looks at each run. It may end the process's CUDA context: a part of its own.
static void run_missing(int64_t n) {
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

static void run_all_packed(void) {
    for (size_t i = 0; i < sizeof packed_cases / sizeof *packed_cases; i++) run_packed(&packed_cases[i], false);
    PackedCase captured = {"captured", 1, 8, 2, 1000, 64, DNN_CAUSAL, 0, UNEVEN, false};
    run_packed(&captured, true);
    run_packed_error("too many documents", 8, false, DEVICE_DOCUMENTS, 9, 8);
    run_packed_error("numbers that fall", 64, true, DEVICE_UNSORTED, 2500, 0);
    for (size_t i = 0; i < sizeof cut_cases / sizeof *cut_cases; i++) run_case(&cut_cases[i]);
}

static void run_packed_speeds(void) {
    for (size_t i = 0; i < sizeof packed_speeds / sizeof *packed_speeds; i++) run_packed_speed(&packed_speeds[i]);
}
