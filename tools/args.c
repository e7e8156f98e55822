#include "args.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void args_help(const Usage *u, FILE *f) {
    fprintf(f, "usage: %s %s\n\n%s\n\n", u->command, u->form, u->about);
    for (int i = 0; i < u->nopt; i++) {
        const Opt *o = &u->opt[i];
        if (!o->name[0]) {
            fprintf(f, "%s\n", o->help);
            continue;
        }
        char left[64];
        snprintf(left, sizeof left, "%s%s%s", o->name, o->arg ? " " : "", o->arg ? o->arg : "");
        fprintf(f, "  %-24s %s\n", left, o->help);
    }
    fprintf(f, "  %-24s %s\n", "--help", "this text");
}

static bool parse_value(const Opt *o, const char *text) {
    char *end = NULL;
    errno = 0;
    switch (o->kind) {
        case OPT_INT: *(int64_t *)o->to = strtoll(text, &end, 10); break;
        case OPT_FLOAT: *(double *)o->to = strtod(text, &end); break;
        default: *(const char **)o->to = text; return true;
    }
    return end != text && !*end && !errno;
}

static const Opt *find_option(const Usage *u, const char *name, size_t n) {
    for (int i = 0; i < u->nopt; i++)
        if (u->opt[i].name[0] && strlen(u->opt[i].name) == n && !strncmp(u->opt[i].name, name, n)) return &u->opt[i];
    return NULL;
}

int args_parse(const Usage *u, int argc, char **argv, const char **rest, int max) {
    int n = 0;
    for (int i = 0; i < argc; i++) {
        const char *a = argv[i];
        if (!strcmp(a, "--help") || !strcmp(a, "-h")) {
            args_help(u, stdout);
            return -2;
        }
        bool letter = a[0] == '-' && a[1] && !a[2] && find_option(u, a, 2);  // -o
        if (strncmp(a, "--", 2) && !letter) {
            if (n == max) {
                fprintf(stderr, "%s: one argument too many: \"%s\" (see %s --help)\n", u->command, a, u->command);
                return -1;
            }
            rest[n++] = a;
            continue;
        }
        const char *eq = strchr(a, '=');
        const Opt *o = find_option(u, a, eq ? (size_t)(eq - a) : strlen(a));
        if (!o) {
            fprintf(stderr, "%s: no such option: %s (see %s --help)\n", u->command, a, u->command);
            return -1;
        }
        if (o->kind == OPT_FLAG) {
            if (eq) {
                fprintf(stderr, "%s: %s takes no value\n", u->command, o->name);
                return -1;
            }
            *(bool *)o->to = true;
            continue;
        }
        const char *text = eq ? eq + 1 : i + 1 < argc ? argv[++i] : NULL;
        if (!text || !parse_value(o, text)) {
            fprintf(stderr, "%s: %s wants %s%s%s\n", u->command, o->name, o->kind == OPT_TEXT ? "a value" : "a number", text ? ", not " : "",
                    text ? text : "");
            return -1;
        }
    }
    return n;
}
