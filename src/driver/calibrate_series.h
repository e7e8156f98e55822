// What is measured at rising sizes, and what the device model learns from it.
#pragma once
#include "driver/calibrate_bench.h"

typedef enum SeriesKind { SERIES_PRODUCT, SERIES_ATTENTION, SERIES_MEMORY } SeriesKind;
enum { MAX_SERIES = 24, MAX_SIZES = 12 };

typedef struct Point {
    double size, rate, seconds;  // FLOPs and FLOP/s; length and FLOP/s; bytes and bytes per second
    int index;                   // in the list of sizes
    const char *kernel;          // of an attention
} Point;

typedef struct Series {
    SeriesKind kind;
    const char *text;
    DType type;
    ProductForm form;            // products
    OpKind op;                   // attention, its gradient; an op bound by memory
    int head;                    // attention
    bool any_mask;               // attention: a mask that only a kernel for any mask takes
    bool gpu;
    int next, step, nsize;       // sizes of the list: the next to measure, how far on the one after it is, where the list ends
    int npoint;
    double best_rate;
    Point point[MAX_SIZES];
} Series;

int series_list(const Backend *b, Series out[MAX_SERIES]);
double series_work(const Series *s, int size);       // FLOPs or bytes
int64_t series_nbytes(const Series *s, int size);    // about what its operands take
int series_build(const Series *s, int size, Bench *x);  // the number of the measure
void series_take(Series *s, Arena *a, int size, const Measure *m);  // `a` keeps names
void series_rates(int n, const Series *s, DeviceModel *m);
