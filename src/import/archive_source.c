// Where the user wrote a node: the innermost line of the stack trace that is not PyTorch's own, and the module it ran in.
#include "import/archive.h"

// One frame:  File "path", line 12, in forward
typedef struct Frame {
    const char *path, *func;
    int npath, nfunc, line;
} Frame;

static bool read_frame(const char *s, Frame *f) {
    int line = 0, after = 0;
    const char *end = strchr(s, '"');
    if (!end) return false;
    if (sscanf(end, "\", line %9d, in %n", &line, &after) < 1 || after == 0) return false;
    const char *slash = s;
    for (const char *c = s; c < end; c++)
        if (*c == '/') slash = c + 1;
    *f = (Frame){.path = slash, .npath = (int)(end - slash), .line = line, .func = end + after};
    f->nfunc = (int)strcspn(f->func, "\n");
    return true;
}

// PyTorch's own modules, installed ("…/torch/nn/modules/linear.py") or as the exporter abbreviates them ("torch/fx/…").
static bool is_torch(const char *s) {
    size_t n = strcspn(s, "\"");
    if (n > 6 && memcmp(s, "torch/", 6) == 0) return true;
    for (size_t i = 0; i + 15 <= n; i++)
        if (memcmp(s + i, "-packages/torch", 15) == 0 && s[i + 15] == '/') return true;
    return false;
}

// The path of the innermost module: the last entry "key,path,type" of a ';' list.
static void last_module(const char *stack, const char **path, int *npath) {
    *npath = 0;
    for (const char *e = stack; *e;) {
        size_t n = strcspn(e, ";"), key = strcspn(e, ",;");
        if (key < n) {
            const char *p = e + key + 1;
            size_t len = strcspn(p, ",;");
            if (len > 0 && p[0] != '_') {
                *path = p;
                *npath = (int)min_i64((int64_t)len, 200);
            }
        }
        e += n + (e[n] == ';');
    }
}

const char *archive_node_source(Arena *a, const json_t *metadata) {
    const json_t *trace = json_object_get(metadata, "stack_trace"), *stack = json_object_get(metadata, "nn_module_stack");
    Frame best = {0}, f;
    bool found = false, own = false;
    const char *s = json_is_string(trace) ? json_string_value(trace) : "";
    while ((s = strstr(s, "File \""))) {
        s += 6;
        bool user = !is_torch(s);
        if ((user || !own) && read_frame(s, &f)) {
            best = f;
            found = true;
            own = own || user;
        }
    }
    const char *path = NULL;
    int npath = 0;
    if (json_is_string(stack)) last_module(json_string_value(stack), &path, &npath);
    if (!found) return npath ? arena_printf(a, "(%.*s)", npath, path) : NULL;
    int nfile = (int)min_i64(best.npath, 200), nfunc = (int)min_i64(best.nfunc, 100);
    if (!npath) return arena_printf(a, "%.*s:%d in %.*s", nfile, best.path, best.line, nfunc, best.func);
    return arena_printf(a, "%.*s:%d in %.*s (%.*s)", nfile, best.path, best.line, nfunc, best.func, npath, path);
}
