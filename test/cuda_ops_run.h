// The per-op samples on backend_cuda: emulated (test_cuda_ops.c) or a GPU (gpu/gpu_ops.c).
#pragma once
#include <stdio.h>

// Every op whose name contains `only` (NULL: all), in every element type, on one rank and under every sharding row. Writes a line
// for each failure and a summary for each op; returns how many failures there were.
int cuda_ops_run(const char *only, FILE *report);
