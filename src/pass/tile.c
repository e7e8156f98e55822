#include "pass/tile.h"
#include "pass/pass.h"
void tile_pieces(const Graph *g, const TileOptions *o, Arena *scratch, int32_t *pieces) {
    (void)o, (void)scratch;
    for (int64_t v = 0; v < g->values.len; v++) pieces[v] = 1;
}
Status pass_tile(PassContext *c, Graph *in, Graph **out, Diag *d) {
    (void)c, (void)d;
    *out = in;
    return ST_OK;
}
