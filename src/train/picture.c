// The loss over steps as an SVG that any browser shows.
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "base/files.h"
#include "train/train.h"

typedef struct Axis {
    double lo, hi, from, to;  // data range and pixel range
} Axis;

static double place(const Axis *a, double v) { return a->from + (v - a->lo) / (a->hi - a->lo) * (a->to - a->from); }

// A step of 1, 2 or 5 times a power of ten that gives about n ticks.
static double tick_step(double range, int n) {
    double raw = range / n, mag = pow(10, floor(log10(raw))), m = raw / mag;
    return (m < 1.5 ? 1 : m < 3.5 ? 2 : m < 7.5 ? 5 : 10) * mag;
}

static void draw_axes(Str *s, const Axis *x, const Axis *y) {
    double dx = fmax(1, tick_step(x->hi - x->lo, 8)), dy = tick_step(y->hi - y->lo, 6);
    for (double v = ceil(y->lo / dy) * dy; v <= y->hi + dy * 1e-6; v += dy)
        str_printf(
            s,
            "<line x1='%g' y1='%.1f' x2='%g' y2='%.1f' stroke='#e4e4e4'/><text x='%g' y='%.1f' text-anchor='end'>%.3g</text>\n",
            x->from, place(y, v), x->to, place(y, v), x->from - 8, place(y, v) + 4, v);
    for (double v = ceil(x->lo / dx) * dx; v <= x->hi + dx * 1e-6; v += dx)
        str_printf(
            s,
            "<line x1='%.1f' y1='%g' x2='%.1f' y2='%g' stroke='#888'/><text x='%.1f' y='%g' text-anchor='middle'>%.0f</text>\n",
            place(x, v), y->from, place(x, v), y->from + 5, place(x, v), y->from + 20, v);
    str_printf(s, "<line x1='%g' y1='%g' x2='%g' y2='%g' stroke='#444'/><line x1='%g' y1='%g' x2='%g' y2='%g' stroke='#444'/>\n",
               x->from, y->from, x->to, y->from, x->from, y->from, x->from, y->to);
    str_printf(s, "<text x='%g' y='%g' text-anchor='middle'>step</text>", (x->from + x->to) / 2, y->from + 40);
    str_printf(s, "<text x='18' y='%g' text-anchor='middle' transform='rotate(-90 18 %g)'>loss (nats per token)</text>\n",
               (y->from + y->to) / 2, (y->from + y->to) / 2);
}

Status picture_write(const char *path, int64_t n, const int64_t *step, const double *loss, double hline, const char *label,
                     Diag *d) {
    double lo = INFINITY, hi = -INFINITY;
    for (int64_t i = 0; i < n; i++)
        if (isfinite(loss[i])) lo = fmin(lo, loss[i]), hi = fmax(hi, loss[i]);
    if (n == 0 || lo > hi) return ST_OK;  // nothing to draw
    if (isfinite(hline)) lo = fmin(lo, hline), hi = fmax(hi, hline);
    double pad = fmax((hi - lo) * 0.06, 1e-6);
    Axis x = {(double)step[0], fmax((double)step[n - 1], (double)step[0] + 1), 70, 780}, y = {lo - pad, hi + pad, 380, 30};
    Str s = {0};
    str_add(&s,
            "<svg xmlns='http://www.w3.org/2000/svg' width='820' height='440' viewBox='0 0 820 440' font-family='sans-serif' "
            "font-size='13' fill='#333'>\n"
            "<rect width='820' height='440' fill='white'/>\n");
    draw_axes(&s, &x, &y);
    if (isfinite(hline))
        str_printf(&s,
                   "<line x1='%g' y1='%.1f' x2='%g' y2='%.1f' stroke='#c33' stroke-dasharray='6 4'/><text x='%g' y='%.1f' "
                   "text-anchor='end' fill='#c33'>%s %.3f</text>\n",
                   x.from, place(&y, hline), x.to, place(&y, hline), x.to, place(&y, hline) - 6, label, hline);
    str_add(&s, "<polyline fill='none' stroke='#1565c0' stroke-width='1.8' points='");
    for (int64_t i = 0; i < n; i++)
        if (isfinite(loss[i])) str_printf(&s, "%.1f,%.1f ", place(&x, (double)step[i]), place(&y, loss[i]));
    str_printf(&s,
               "'/>\n<text x='425' y='20' text-anchor='middle' font-size='15'>training loss: %.3f at step %" PRId64
               "</text>\n</svg>\n",
               loss[n - 1], step[n - 1]);
    Status st = file_replace(path, str_text(&s), s.len, d);
    str_free(&s);
    return st;
}
