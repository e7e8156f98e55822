#include "pass/pass.h"
Status pass_offload(PassContext *c, Graph *in, Graph **out, Diag *d) {
    (void)c, (void)d;
    *out = in;
    return ST_OK;
}
