// No cuDNN in the emulation: it takes no call, so that all attention goes to our own kernels.
#include "backend/cuda/dnn.h"

const char *dnn_refuses(const DnnCall *c) { return "the emulated device has no cuDNN"; }
size_t dnn_scratch(const DnnCall *c) { return 0; }

Status dnn_prepare(Device *dev, const DnnCall *c, DnnPlan **out, Diag *d) {
    return diag_error(d, ST_UNSUPPORTED, "attention by cuDNN: %s", dnn_refuses(c));
}

Status dnn_run(Device *dev, const DnnPlan *p, const DnnData *data, void *scratch, Diag *d) {
    return diag_error(d, ST_UNSUPPORTED, "attention by cuDNN: %s", dnn_refuses(NULL));
}

void dnn_close(Device *dev) {}
