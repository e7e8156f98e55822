// autosp: compile a one-device training program into a long-context one.
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "autosp.h"
#include "commands.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *about;
} commands[] = {
    {"train", command_train, "train a model on long sequences"},
    {"plan", command_plan, "what a step will take: memory to the byte, time, every collective and why"},
    {"check", command_check, "prove that the compiled program equals the original"},
    {"dump", command_dump, "print the graph after a pass"},
};

static void help(FILE *f) {
    fprintf(f, "usage: autosp COMMAND ...   (autosp COMMAND --help says more)\n\n");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) fprintf(f, "  %-8s %s\n", commands[i].name, commands[i].about);
    fprintf(f, "  %-8s %s\n", "--version", "the version and what it was built with");
    fprintf(f, "\nAutoSP compiles a training program exported from PyTorch (torch.export, .pt2) for one device into one that runs\n"
               "sequence-parallel on any number of ranks, and proves it equal to the original. See README.md and docs/.\n");
}

int main(int argc, char **argv) {
    signal(SIGXFSZ, SIG_IGN);  // a limit on file sizes is an error of write, as a full disk is
    if (argc < 2) {
        help(stderr);
        return EXIT_USAGE;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        help(stdout);
        return EXIT_DONE;
    }
    if (!strcmp(argv[1], "--version")) {
        // The build options that this version knows; others (cuda, hip, mpi, nccl) are not part of it yet.
        printf("autosp %s\nbackends: cpu (float32)\nranks: threads of one process\nnot in this version: cuda, hip, mpi, nccl\n", autosp_version());
        return EXIT_DONE;
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(argv[1], commands[i].name)) return commands[i].run(argc - 2, argv + 2);
    fprintf(stderr, "autosp: no such command: %s\n\n", argv[1]);
    help(stderr);
    return EXIT_USAGE;
}
