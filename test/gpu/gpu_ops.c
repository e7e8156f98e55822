// The kernels of the CUDA backend that are no contractions, on a GPU: gpu_ops [samples] [speed] [large] (none named: all three).
//   samples  every sample of the op table against the reference executor (the same as test_cuda_ops does in the emulation)
//   speed    GB/s beside a device copy
//   large    tensors of more than 2^31 elements against closed forms; attention, sorting and convolution too (needs 36 GB)
// `small` makes the large ones small: to try this program in the emulation.
#include <string.h>
#include "cuda_ops_run.h"
#include "ops_bench.h"

static bool named(int argc, char **argv, const char *name) {
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], name)) return true;
    return false;
}

int main(int argc, char **argv) {
    bool small = named(argc, argv, "small"), all = argc == 1 + small;
    int nfail = 0;
    if (all || named(argc, argv, "samples")) nfail += cuda_ops_run(NULL, stdout);
    Bench b = {.api = backend_cuda.device, .report = stdout, .nbytes = small ? (size_t)4 << 30 : (size_t)36 << 30};
    Diag d = {0};
    if (b.api->open(0, 1, b.nbytes, &b.dev, (void **)&b.arena, &d) != ST_OK) {
        printf("FAIL %s\n", d.text);
        return 1;
    }
    if (all || named(argc, argv, "large")) bench_large(&b, small ? 0.001 : 1);
    if (!small && (all || named(argc, argv, "speed"))) bench_speed(&b);
    b.api->close(b.dev);
    nfail += b.nfail;
    printf("%s: %d failures\n", nfail ? "FAIL" : "PASS", nfail);
    return nfail != 0;
}
