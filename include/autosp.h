/* AutoSP: compiles a training program exported from PyTorch for one device into one that runs sequence-parallel on any number of
 * ranks, with the same loss and the same gradients. This is the whole public interface, in C11; the command `autosp` offers the
 * same and more from a shell.
 *
 *     autosp_options o = autosp_options_default();
 *     o.seq = 8192; o.ranks = 2;
 *     autosp_error e;
 *     autosp_program *p; autosp_session *s; double loss;
 *     if (autosp_compile("m.pt2", &o, &p, &e)) die(e.text);
 *     printf("%lld bytes per rank\n", (long long)autosp_peak_nbytes(p, 0));
 *     if (autosp_session_new(p, 1, &s, &e)) die(e.text);
 *     autosp_set_input(s, "input_ids", ids, &e);      // int64 [batch, seq]
 *     autosp_set_input(s, "labels", labels, &e);
 *     autosp_step(s, 3e-4, &loss, &e);
 *
 * Functions that can fail return an autosp_status, 0 for success, and leave the reason in *e (which must not be NULL). Objects
 * are not thread-safe: use one from one thread at a time. Sizes are counted in elements unless the name says nbytes. */
#ifndef AUTOSP_H
#define AUTOSP_H

#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum autosp_status {
    AUTOSP_OK = 0,
    AUTOSP_INPUT,        /* a file or argument is malformed, contradictory or out of range */
    AUTOSP_UNSUPPORTED,  /* well-formed, but cannot be compiled; the text names the node and what to do */
    AUTOSP_IO,
    AUTOSP_MEMORY,
    AUTOSP_NUMERIC,      /* NaN weights, token ids out of range, a loss that is not finite */
    AUTOSP_COMM,         /* ranks disagree, or one is missing */
    AUTOSP_INTERRUPTED,
    AUTOSP_MISMATCH
} autosp_status;

typedef struct autosp_error {
    autosp_status status;
    char text[2048];
} autosp_error;

typedef struct autosp_options {
    int64_t batch, seq;      /* what the program is bound to; 0: the archive's example sizes */
    int ranks;               /* sequence-parallel ranks, threads of this process; 1 */
    int threads;             /* workers per rank; 0: processors / ranks */
    const char *attention;   /* "auto", "head" (all-to-all of heads), "gather-kv" (all-gather of keys and values) */
    const char *weights;     /* safetensors file or checkpoint folder that overrides the archive's weights; NULL */
    int optimizer;           /* 1: the step ends with AdamW; 0: loss and gradients only */
    double beta1, beta2, eps, weight_decay, clip_norm;  /* AdamW; clip_norm 0: no clipping */
    const char *device;      /* "cpu", "cuda" (where it was built in; compiling and planning need no GPU) */
    const char *dtype;       /* "fp32", "bf16" (mixed precision, on a GPU); NULL: the archive's, fp32 on the CPU */
    int64_t max_documents;   /* packed into one row, with masks that keep them apart, on a GPU: faster attention; 0: not known */
    int random_missing;      /* 1: parameters without bytes are drawn from the session's seed instead of being an error */
} autosp_options;

typedef struct autosp_program autosp_program;  /* compiled: graph and plan; immutable */
typedef struct autosp_session autosp_session;  /* a program with memory, parameters and inputs: it can run */

const char *autosp_version(void);
autosp_options autosp_options_default(void);

/* Reads, compiles and plans. On success *out is the caller's, to be freed with autosp_program_free after its sessions. */
autosp_status autosp_compile(const char *path, const autosp_options *o, autosp_program **out, autosp_error *e);
void autosp_program_free(autosp_program *p);

int autosp_ranks(const autosp_program *p);
/* Bytes of the one arena that rank `rank` allocates: the peak, known before anything runs. -1 for a rank that does not exist. */
int64_t autosp_peak_nbytes(const autosp_program *p, int rank);
double autosp_step_flops(const autosp_program *p, int rank);
/* The plan as text for people, or as JSON. */
autosp_status autosp_print_plan(const autosp_program *p, FILE *f, int json, autosp_error *e);

int autosp_num_inputs(const autosp_program *p);
const char *autosp_input_name(const autosp_program *p, int i);   /* NULL beyond the last */
int autosp_num_parameters(const autosp_program *p);              /* one per tied group */
const char *autosp_parameter_name(const autosp_program *p, int i);
int64_t autosp_parameter_numel(const autosp_program *p, int i);

/* Allocates the ranks' arenas, starts their threads and loads the parameters. `seed` keys dropout and made-up parameters. The
 * program must outlive the session. */
autosp_status autosp_session_new(const autosp_program *p, uint64_t seed, autosp_session **out, autosp_error *e);
void autosp_session_free(autosp_session *s);

/* The whole value of an input, row-major: int64 for whole numbers, one byte per bool, float for reals. Copied during the call. */
autosp_status autosp_set_input(autosp_session *s, const char *name, const void *data, autosp_error *e);
/* One step on all ranks: forward, backward and, with the optimizer, AdamW at this learning rate. *loss is the loss before the
 * update. */
autosp_status autosp_step(autosp_session *s, double lr, double *loss, autosp_error *e);
/* Parameter i as float, its numel of them; and its gradient of the last step (zeros if the loss does not depend on it). */
autosp_status autosp_get_parameter(autosp_session *s, int i, float *out, autosp_error *e);
autosp_status autosp_get_gradient(autosp_session *s, int i, float *out, autosp_error *e);

#ifdef __cplusplus
}
#endif
#endif
