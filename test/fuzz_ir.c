// Mutated graph text: parsing and verifying end in success or an error, never a crash; what is accepted prints and parses to
// itself.
//     fuzz_ir [seconds [first_iteration]]
#include "driver/driver.h"
#include "fuzz.h"
#include "random_graph.h"

enum { TEXT_USES = 200 };  // iterations that mutate the same text

// A random program as text, after some pass, on a few ranks.
static void random_text(Rng *r, Str *out) {
    Arena *a = arena_new();
    RandomGraph g;
    random_graph(a, rng_below(r, 64), 1 + (int)rng_below(r, 12), DT_F32, &g);
    int n;
    CompileOptions o;
    compile_defaults(&o);
    o.nranks = 1 + (int)rng_below(r, 3);
    o.stop_after = pass_names(&n)[rng_below(r, 10)];
    o.update = rng_below(r, 2);
    Compiled c = {0};
    Diag d = {0};
    if (compile_graph(a, g.g, &o, &c, &d) != ST_OK) {
        fprintf(stderr, "iteration %ld: %s\n", fuzz_iteration, d.text);
        exit(1);
    }
    graph_print(c.graph, out);
    compiled_free(&c);
}

static void mutate_text(Rng *r, Str *s) {
    static const char *const words[] = {
        "-1", "0", "1", "9223372036854775807", "-9223372036854775808", "4294967296", "%0", "%1", "@0", "[]", "[0]",
        "f32", "bool", "i64", "replicate", "partial(sum)", "shard(0,@0)", "shard(1,@0,sum)", "reshape", "dot",
        "concat", "fused", "attention", "nan", "inf", "1e400", "{", "}", "(", ")", "\"", "#", "\n", "- |", "[0,1)",
        "dim=0", ",",
    };
    if (rng_below(r, 5) == 0) {
        mutate_bytes(r, s);
        return;
    }
    size_t n, at = token_at(r, s, &n);
    if (n == 0) return;
    if (rng_below(r, 2)) {
        const char *w = words[rng_below(r, sizeof words / sizeof *words)];
        replace(s, at, n, w, strlen(w));
        return;
    }
    size_t m, from = token_at(r, s, &m);
    char copy[512];
    if (m >= sizeof copy) return;
    memcpy(copy, s->data + from, m);
    replace(s, at, n, copy, m);
}

static void one(Rng *r, void *ctx) {
    Str *base = ctx;
    if (!base->len || fuzz_iteration % TEXT_USES == 0) {
        Rng text = {(uint64_t)(fuzz_iteration / TEXT_USES) * 0x9e3779b97f4a7c15u + 12345};  // any iteration can be run by itself
        base->len = 0;
        random_text(&text, base);
    }
    Str s = {0};
    str_addn(&s, base->data, base->len);
    for (size_t k = 1 + rng_below(r, 4); k > 0; k--) mutate_text(r, &s);
    Arena *a = arena_new();
    Graph *g = NULL, *back = NULL;
    Diag d = {0};
    Status st = graph_parse(a, str_text(&s), "fuzz.ir", &g, &d);
    if (st != ST_OK && !strstr(d.text, "fuzz.ir:")) {
        fprintf(stderr, "iteration %ld: an error that does not say where: %s\n", fuzz_iteration, d.text);
        exit(1);
    }
    if (st == ST_OK) st = graph_verify(g, "fuzz", &d);
    if (st == ST_OK) {
        Str once = {0}, twice = {0};
        graph_print(g, &once);
        if (graph_parse(a, str_text(&once), "again", &back, &d) == ST_OK) graph_print(back, &twice);
        if (strcmp(str_text(&once), str_text(&twice))) {
            fprintf(stderr, "iteration %ld: prints otherwise once parsed (%s)\n", fuzz_iteration, d.text);
            exit(1);
        }
        str_free(&once);
        str_free(&twice);
    }
    if (back) graph_free_vecs(back);
    if (g) graph_free_vecs(g);
    arena_free(a);
    str_free(&s);
}

int main(int argc, char **argv) {
    Str base = {0};
    int rc = fuzz_loop(argc, argv, one, &base);
    str_free(&base);
    return rc;
}
