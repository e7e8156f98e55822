// autosp: compile a one-device training program into a long-context one.
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "autosp.h"
#include "backend/registry.h"
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
    {"calibrate", command_calibrate, "measure this machine for predictions of time"},
};

static void help(FILE *f) {
    fprintf(f, "usage: autosp COMMAND ...   (autosp COMMAND --help says more)\n\n");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(f, "  %-9s %s\n", commands[i].name, commands[i].about);
    fprintf(f, "  %-9s %s\n", "--version", "the version and what it was built with");
    fprintf(f,
            "\nAutoSP compiles a training program exported from PyTorch (torch.export, .pt2) for one device into one that runs\n"
            "sequence-parallel on any number of ranks, and proves it equal to the original. See README.md and docs/.\n");
}

// What this executable was built with, and the devices it could use now.
static void version(void) {
    printf("autosp %s\nbackends: cpu (fp32)\n", autosp_version());
    const Backend *cuda;
    Diag d = {0};
    if (backend_built("cuda") && backend_find("cuda", &cuda, &d) == ST_OK) {
        char about[256];
        cuda->device->about(about, sizeof about);
        printf("          cuda (fp32, bf16): %s\n", about);
    } else {
        printf("          cuda is not in this build: nvcc was not found (or AUTOSP_CUDA=OFF)\n");
    }
    printf("ranks: threads of one process; with cuda also processes of one machine\nnot in this version: hip, mpi, nccl\n");
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
        version();
        return EXIT_DONE;
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(argv[1], commands[i].name)) return commands[i].run(argc - 2, argv + 2);
    fprintf(stderr, "autosp: no such command: %s\n\n", argv[1]);
    help(stderr);
    return EXIT_USAGE;
}
