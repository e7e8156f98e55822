// Options of a subcommand from one table: parsing, checking and --help come from the same rows.
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include "base/diag.h"

typedef enum OptKind { OPT_FLAG, OPT_INT, OPT_FLOAT, OPT_TEXT } OptKind;
typedef struct Opt {
    const char *name;  // "--ranks"; a row with an empty name is a heading in the help
    OptKind kind;
    void *to;          // bool *, int64_t *, double *, const char **
    const char *arg;   // "P"
    const char *help;
} Opt;

typedef struct Usage {
    const char *command;  // "autosp check"
    const char *form;     // "M.pt2 --golden F.safetensors --ranks P"
    const char *about;
    const Opt *opt;
    int nopt;
} Usage;

// Options anywhere; the others go to rest[] in order (at most max). Returns their number, or -1 after printing what is wrong, or
// -2 after --help was printed.
int args_parse(const Usage *u, int argc, char **argv, const char **rest, int max);
void args_help(const Usage *u, FILE *f);
