// Plans: from a graph by the heuristics' proposals, from text, and their runs. See dnn_graph.h.
#include "backend/cuda/attention/dnn_graph.h"
#if LIBS_HAVE_CUDNN
#include <stdlib.h>
#include <string.h>

enum { MAX_CONFIGS = 32 };

static cudnnStatus_t get(const Dnn *dnn, cudnnBackendDescriptor_t x, cudnnBackendAttributeName_t attr,
                         cudnnBackendAttributeType_t type, int64_t n, int64_t *count, void *value) {
    return dnn->lib->cudnnBackendGetAttribute(x, attr, type, n, count, value);
}

static cudnnStatus_t set(const Dnn *dnn, cudnnBackendDescriptor_t x, cudnnBackendAttributeName_t attr,
                         cudnnBackendAttributeType_t type, int64_t n, const void *value) {
    return dnn->lib->cudnnBackendSetAttribute(x, attr, type, n, value);
}

// A descriptor learns for which device it is.
static cudnnStatus_t set_device(const Dnn *dnn, cudnnBackendDescriptor_t x, cudnnBackendAttributeName_t handle) {
    return set(dnn, x, handle, CUDNN_TYPE_HANDLE, 1, &dnn->handle);
}

static cudnnStatus_t operation_graph(DnnGraph *g, cudnnBackendDescriptor_t *out) {
    const Dnn *dnn = g->dnn;
    cudnnStatus_t st = dnn->lib->cudnnBackendCreateDescriptor(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, out);
    if (st != CUDNN_STATUS_SUCCESS) return st;
    st = set(dnn, *out, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->nop, g->op);
    if (st == CUDNN_STATUS_SUCCESS) st = set_device(dnn, *out, CUDNN_ATTR_OPERATIONGRAPH_HANDLE);
    return st == CUDNN_STATUS_SUCCESS ? dnn->lib->cudnnBackendFinalize(*out) : st;
}

// The proposals of one heuristic, best first.
static cudnnStatus_t proposals(const Dnn *dnn, cudnnBackendDescriptor_t graph, cudnnBackendHeurMode_t mode,
                               cudnnBackendDescriptor_t *heuristic, cudnnBackendDescriptor_t *config, int64_t *n) {
    const CudnnLib *lib = dnn->lib;
    *n = 0;
    cudnnStatus_t st = lib->cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, heuristic);
    if (st == CUDNN_STATUS_SUCCESS)
        st = set(dnn, *heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &graph);
    if (st == CUDNN_STATUS_SUCCESS) st = set(dnn, *heuristic, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    if (st == CUDNN_STATUS_SUCCESS) st = lib->cudnnBackendFinalize(*heuristic);
    if (st != CUDNN_STATUS_SUCCESS) return st;
    for (int i = 0; i < MAX_CONFIGS; i++) {
        st = lib->cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &config[i]);
        if (st != CUDNN_STATUS_SUCCESS) return st;
    }
    return get(dnn, *heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, MAX_CONFIGS, n, config);
}

static int64_t engine_of(const Dnn *dnn, cudnnBackendDescriptor_t config) {
    cudnnBackendDescriptor_t engine = NULL;
    int64_t n = 0, index = -1;
    if (dnn->lib->cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &engine) != CUDNN_STATUS_SUCCESS) return -1;
    if (get(dnn, config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n, &engine) == CUDNN_STATUS_SUCCESS)
        get(dnn, engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &n, &index);
    dnn->lib->cudnnBackendDestroyDescriptor(engine);
    return index;
}

static cudnnStatus_t workspace_of(const Dnn *dnn, cudnnBackendDescriptor_t plan, int64_t *nbytes) {
    int64_t n = 0;
    return get(dnn, plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &n, nbytes);
}

static cudnnStatus_t build(const Dnn *dnn, cudnnBackendDescriptor_t config, cudnnBackendDescriptor_t *plan, int64_t *workspace) {
    cudnnStatus_t st = dnn->lib->cudnnBackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, plan);
    if (st != CUDNN_STATUS_SUCCESS) return st;
    st = set_device(dnn, *plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE);
    if (st == CUDNN_STATUS_SUCCESS)
        st = set(dnn, *plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &config);
    if (st == CUDNN_STATUS_SUCCESS) st = dnn->lib->cudnnBackendFinalize(*plan);
    if (st == CUDNN_STATUS_SUCCESS) st = workspace_of(dnn, *plan, workspace);
    if (st == CUDNN_STATUS_SUCCESS) return st;
    dnn_plan_free(dnn, *plan);
    *plan = NULL;
    return st;
}

// Tries the proposals in order. What stood in the way of each goes into the error.
static Status choose(const Dnn *dnn, cudnnBackendDescriptor_t *config, int64_t n, int64_t max_workspace,
                     cudnnBackendDescriptor_t *plan, DnnEngine *engine, Diag *d) {
    Diag why = {0};
    int64_t least = INT64_MAX;
    for (int i = 0; i < n; i++) {
        int64_t workspace = 0;
        cudnnStatus_t st = build(dnn, config[i], plan, &workspace);
        if (st != CUDNN_STATUS_SUCCESS) {
            dnn_error(dnn, st, "execution plan", &why);
            continue;
        }
        if (workspace <= max_workspace) {
            *engine = (DnnEngine){engine_of(dnn, config[i]), workspace, (int)n, i};
            return ST_OK;
        }
        if (workspace < least) least = workspace;
        dnn_plan_free(dnn, *plan);
        *plan = NULL;
    }
    if (least < INT64_MAX)
        return diag_error(d, ST_UNSUPPORTED, "cuDNN's engines for this attention need %lld bytes of workspace, %lld were planned",
                          (long long)least, (long long)max_workspace);
    return diag_error(d, ST_UNSUPPORTED, "none of cuDNN's %lld engines takes this attention: %s", (long long)n, why.text);
}

Status dnn_graph_plan(DnnGraph *g, int64_t max_workspace, cudnnBackendDescriptor_t *plan, DnnEngine *engine, Diag *d) {
    const Dnn *dnn = g->dnn;
    *plan = NULL;
    if (g->error.status != ST_OK) return diag_error(d, g->error.status, "%s", g->error.text);
    cudnnBackendDescriptor_t graph = NULL, heuristic = NULL, config[MAX_CONFIGS] = {0};
    int64_t n = 0;
    Status result = ST_OK;
    cudnnStatus_t st = operation_graph(g, &graph);
    if (st != CUDNN_STATUS_SUCCESS) result = dnn_error(dnn, st, "operation graph", d);
    if (result == ST_OK) {
        st = proposals(dnn, graph, CUDNN_HEUR_MODE_A, &heuristic, config, &n);
        if (st != CUDNN_STATUS_SUCCESS) result = dnn_error(dnn, st, "heuristics", d);
    }
    if (result == ST_OK) result = choose(dnn, config, n, max_workspace, plan, engine, d);
    for (int i = 0; i < MAX_CONFIGS; i++)
        if (config[i]) dnn->lib->cudnnBackendDestroyDescriptor(config[i]);
    if (heuristic) dnn->lib->cudnnBackendDestroyDescriptor(heuristic);
    if (graph) dnn->lib->cudnnBackendDestroyDescriptor(graph);
    return result;
}

// ---- text
// -------------------------------------------------------------------------------------------------------------------------
Status dnn_plan_text(const Dnn *dnn, cudnnBackendDescriptor_t plan, char **text, size_t *nbytes, Diag *d) {
    int64_t n = 0;
    cudnnStatus_t st = get(dnn, plan, CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, 0, &n, NULL);
    if (st != CUDNN_STATUS_SUCCESS) return dnn_error(dnn, st, "length of the plan's text", d);
    *text = calloc((size_t)n + 1, 1);
    if (!*text) return diag_error(d, ST_MEMORY, "no memory for a cuDNN plan's text of %lld bytes", (long long)n);
    st = get(dnn, plan, CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, n, &n, *text);
    if (st != CUDNN_STATUS_SUCCESS) {
        free(*text);
        *text = NULL;
        return dnn_error(dnn, st, "the plan's text", d);
    }
    *nbytes = (size_t)n;
    return ST_OK;
}

Status dnn_plan_from_text(const Dnn *dnn, const char *text, size_t nbytes, cudnnBackendDescriptor_t *plan, int64_t *workspace,
                          Diag *d) {
    cudnnStatus_t st = dnn->lib->cudnnBackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, plan);
    if (st == CUDNN_STATUS_SUCCESS)
        st = set_device(dnn, *plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE);
    if (st == CUDNN_STATUS_SUCCESS)
        st = set(dnn, *plan, CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, (int64_t)nbytes, text);
    if (st == CUDNN_STATUS_SUCCESS) st = dnn->lib->cudnnBackendFinalize(*plan);
    if (st == CUDNN_STATUS_SUCCESS) st = workspace_of(dnn, *plan, workspace);
    if (st == CUDNN_STATUS_SUCCESS) return ST_OK;
    dnn_error(dnn, st, "plan from its text", d);
    dnn_plan_free(dnn, *plan);
    *plan = NULL;
    return d->status;
}

void dnn_plan_free(const Dnn *dnn, cudnnBackendDescriptor_t plan) {
    if (plan) dnn->lib->cudnnBackendDestroyDescriptor(plan);
}

Status dnn_plan_run(const Dnn *dnn, cudnnBackendDescriptor_t plan, int n, const int64_t *uid, void **data, void *workspace,
                    Diag *d) {
    cudnnBackendDescriptor_t pack = NULL;
    cudnnStatus_t st = dnn->lib->cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);
    if (st == CUDNN_STATUS_SUCCESS) st = set(dnn, pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, n, uid);
    if (st == CUDNN_STATUS_SUCCESS) st = set(dnn, pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, n, data);
    if (st == CUDNN_STATUS_SUCCESS) st = set(dnn, pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    if (st == CUDNN_STATUS_SUCCESS) st = dnn->lib->cudnnBackendFinalize(pack);
    if (st == CUDNN_STATUS_SUCCESS) st = dnn->lib->cudnnBackendExecute(dnn->handle, plan, pack);
    if (pack) dnn->lib->cudnnBackendDestroyDescriptor(pack);
    return st == CUDNN_STATUS_SUCCESS ? ST_OK : dnn_error(dnn, st, "execution", d);
}
#endif
