// Copies, fills and reductions of boxes (box.h). A box is simplified first: dims of one element dropped, neighbours that lie
// alike on both sides merged, elements that go along together taken as one of up to 16 bytes. Then it is one of
//   plain      dims in the order of dst; neighbouring threads write neighbouring elements
//   splat      the innermost dim is a broadcast: one load, 16-byte stores
//   transpose  another dim is the dense one of src: square tiles through shared memory
// Larger boxes than an unsigned 32-bit index can count are cut, so that the kernels divide 32-bit numbers.
#include "backend/cuda/ops/box.h"
#include "backend/cuda/device/gpu_util.h"

#if defined(GPU_EMULATE)
enum { BOX_MOST = 100 };  // small, so that the cutting is tested
#else
enum { BOX_MOST = 1 << 30 };
#endif
enum { UNROLL = 4, TRANSPOSE_LEAST = 16 };

struct BoxParams {
    void *dst;
    const void *src;
    u64 value[2];  // fill
    u32 n;
    int ndim;
    FastDiv div[GPU_BOX_DIMS];
    i64 to[GPU_BOX_DIMS], from[GPU_BOX_DIMS];
};

GPU_FN void box_offsets(const BoxParams &p, u32 i, i64 *to, i64 *from) {
    i64 t = 0, f = 0;
    for (int d = p.ndim - 1; d > 0; d--) {
        u32 q = fast_div(i, p.div[d]), r = i - q * p.div[d].d;
        t += r * p.to[d], f += r * p.from[d];
        i = q;
    }
    *to = t + i * p.to[0], *from = f + i * p.from[0];
}

// All loads of a round are under way before the first store.
template <class S, class D, class F> GPU_FN void box_copy(const BoxParams &p, F convert) {
    u32 step = (u32)gpu_nthreads();
    for (u32 i = (u32)gpu_thread(); i < p.n; i += UNROLL * step) {
        S v[UNROLL];
        i64 to[UNROLL], from;
        GPU_UNROLL for (int u = 0; u < UNROLL; u++) {
            if (i + u * step >= p.n) continue;
            box_offsets(p, i + u * step, &to[u], &from);
            v[u] = ((const S *)p.src)[from];
        }
        GPU_UNROLL for (int u = 0; u < UNROLL; u++)
            if (i + u * step < p.n) convert(((D *)p.dst) + to[u], v[u]);
    }
}
template <class T> struct BoxAssign { GPU_CALL void operator()(T *d, T v) const { *d = v; } };
template <class T> struct BoxSplat {
    GPU_CALL void operator()(Pack<T> *d, T v) const {
        Pack<T> all;
        GPU_UNROLL for (int i = 0; i < (int)(16 / sizeof(T)); i++) all.v[i] = v;
        *d = all;
    }
};
struct BoxAddFloat {
    template <class T>
    GPU_CALL void operator()(T *d, T v) const {
        store_float(d, to_float(*d) + to_float(v));
    }
};
struct BoxMaxFloat {
    template <class T> GPU_CALL void operator()(T *d, T v) const {
        float have = to_float(*d), x = to_float(v);
        if (x > have || x != x) *d = v;
    }
};
struct BoxAddInt { GPU_CALL void operator()(u64 *d, u64 v) const { *d += v; } };
struct BoxMaxInt { GPU_CALL void operator()(i64 *d, i64 v) const { if (v > *d) *d = v; } };
struct BoxOrBool { GPU_CALL void operator()(u8 *d, u8 v) const { *d |= v; } };

typedef Pack<u64> Wide;
GPU_KERNEL(box_copy_1, BoxParams, UTIL_BLOCK) { box_copy<u8, u8>(p, BoxAssign<u8>()); }
GPU_KERNEL(box_copy_2, BoxParams, UTIL_BLOCK) { box_copy<u16, u16>(p, BoxAssign<u16>()); }
GPU_KERNEL(box_copy_4, BoxParams, UTIL_BLOCK) { box_copy<u32, u32>(p, BoxAssign<u32>()); }
GPU_KERNEL(box_copy_8, BoxParams, UTIL_BLOCK) { box_copy<u64, u64>(p, BoxAssign<u64>()); }
GPU_KERNEL(box_copy_16, BoxParams, UTIL_BLOCK) { box_copy<Wide, Wide>(p, BoxAssign<Wide>()); }
GPU_KERNEL(box_splat_1, BoxParams, UTIL_BLOCK) { box_copy<u8, Pack<u8>>(p, BoxSplat<u8>()); }
GPU_KERNEL(box_splat_2, BoxParams, UTIL_BLOCK) { box_copy<u16, Pack<u16>>(p, BoxSplat<u16>()); }
GPU_KERNEL(box_splat_4, BoxParams, UTIL_BLOCK) { box_copy<u32, Pack<u32>>(p, BoxSplat<u32>()); }
GPU_KERNEL(box_splat_8, BoxParams, UTIL_BLOCK) { box_copy<u64, Pack<u64>>(p, BoxSplat<u64>()); }
GPU_KERNEL(box_sum_f32, BoxParams, UTIL_BLOCK) { box_copy<float, float>(p, BoxAddFloat()); }
GPU_KERNEL(box_sum_bf16, BoxParams, UTIL_BLOCK) { box_copy<bf16, bf16>(p, BoxAddFloat()); }
GPU_KERNEL(box_sum_i64, BoxParams, UTIL_BLOCK) { box_copy<u64, u64>(p, BoxAddInt()); }
GPU_KERNEL(box_max_f32, BoxParams, UTIL_BLOCK) { box_copy<float, float>(p, BoxMaxFloat()); }
GPU_KERNEL(box_max_bf16, BoxParams, UTIL_BLOCK) { box_copy<bf16, bf16>(p, BoxMaxFloat()); }
GPU_KERNEL(box_max_i64, BoxParams, UTIL_BLOCK) { box_copy<i64, i64>(p, BoxMaxInt()); }
GPU_KERNEL(box_or, BoxParams, UTIL_BLOCK) { box_copy<u8, u8>(p, BoxOrBool()); }

// ---- transposition --------------------------------------------------------------------------------------------------------

struct TransposeParams {
    void *dst;
    const void *src;
    i64 rows, cols, row_pitch, col_pitch;  // dst[row * row_pitch + col] = src[row + col * col_pitch]
    FastDiv band, bands;                   // tiles of a band of BAND rows of tiles; bands
    u32 n;                                 // tiles in all, with those of the last band that are not there
    int ndim;                              // further dims
    FastDiv size[GPU_BOX_DIMS];
    i64 to[GPU_BOX_DIMS], from[GPU_BOX_DIMS];
};

// Where tile t begins. Blocks that run together take a band of tiles, so that they read and write long pieces of memory.
enum { BAND = 8 };
GPU_FN void transpose_place(const TransposeParams &p, u32 t, i64 *r0, i64 *c0, i64 *to, i64 *from) {
    u32 band = fast_div(t, p.band), in = t - band * p.band.d, rest = fast_div(band, p.bands);
    *c0 = in / BAND, *r0 = (i64)(band - rest * p.bands.d) * BAND + in % BAND;
    i64 t_to = 0, t_from = 0;
    for (int d = p.ndim - 1; d >= 0; d--) {
        u32 q = fast_div(rest, p.size[d]), r = rest - q * p.size[d].d;
        t_to += r * p.to[d], t_from += r * p.from[d];
        rest = q;
    }
    *to = t_to, *from = t_from;
}

// The pitch of the tile makes lanes that read down a column hit different banks: an odd number of words.
template <class T, int TILE> GPU_FN void transpose(const TransposeParams &p) {
    GPU_SHARED T tile[TILE][TILE + (sizeof(T) < 4 ? 4 / sizeof(T) : 1)];
    for (u32 t = (u32)gpu_block_x; t < p.n; t += (u32)gpu_grid_x) {
        i64 r0, c0, to, from;
        transpose_place(p, t, &r0, &c0, &to, &from);
        r0 *= TILE, c0 *= TILE;
        if (r0 >= p.rows) continue;  // the whole block
        const T *src = (const T *)p.src + from + r0 + c0 * p.col_pitch;
        T *dst = (T *)p.dst + to + r0 * p.row_pitch + c0;
        int nr = (int)min_of(TILE, p.rows - r0), nc = (int)min_of(TILE, p.cols - c0);
        GPU_UNROLL for (int e = (int)gpu_thread_x; e < TILE * TILE; e += UTIL_THREADS) {
            int r = e % TILE, c = e / TILE;
            if (r < nr && c < nc) tile[c][r] = src[r + c * p.col_pitch];
        }
        gpu_sync();
        GPU_UNROLL for (int e = (int)gpu_thread_x; e < TILE * TILE; e += UTIL_THREADS) {
            int c = e % TILE, r = e / TILE;
            if (r < nr && c < nc) dst[r * p.row_pitch + c] = tile[c][r];
        }
        gpu_sync();
    }
}
GPU_KERNEL(transpose_1, TransposeParams, UTIL_BLOCK) { transpose<u8, 64>(p); }
GPU_KERNEL(transpose_2, TransposeParams, UTIL_BLOCK) { transpose<u16, 64>(p); }
GPU_KERNEL(transpose_4, TransposeParams, UTIL_BLOCK) { transpose<u32, 64>(p); }
GPU_KERNEL(transpose_8, TransposeParams, UTIL_BLOCK) { transpose<u64, 32>(p); }

// Elements of 2 or 4 bytes by 16-byte loads and stores. A tile is 64 words by as many columns as make it square; a word of shared
// memory holds one element or two that are neighbours in src, and its place is turned by the column, so that neither side's lanes
// meet in a bank.
enum { WIDE_WORDS = 64, WIDE_PACKS = WIDE_WORDS / 4 };
template <class T> struct WideTile {
    enum { PACK = 16 / sizeof(T), PER = 4 / sizeof(T), SIDE = WIDE_WORDS * PER, LOADS = SIDE * WIDE_PACKS / UTIL_THREADS };
    enum { UNITS = SIDE / PACK * WIDE_WORDS };
};
GPU_FN u32 wide_pair(u32 a, u32 b, int half) { return half ? a >> 16 | (b & 0xffff0000u) : (a & 0xffffu) | b << 16; }

template <class T> GPU_FN void transpose_wide(const TransposeParams &p) {
    typedef WideTile<T> W;
    GPU_SHARED Pack<u32> tile[W::SIDE][WIDE_PACKS];
    for (u32 t = (u32)gpu_block_x; t < p.n; t += (u32)gpu_grid_x) {
        i64 r0, c0, to, from;
        transpose_place(p, t, &r0, &c0, &to, &from);
        r0 *= W::SIDE, c0 *= W::SIDE;
        if (r0 >= p.rows) continue;  // the whole block
        const T *src = (const T *)p.src + from + r0 + c0 * p.col_pitch;
        T *dst = (T *)p.dst + to + r0 * p.row_pitch + c0;
        int nr = (int)min_of(W::SIDE, p.rows - r0), nc = (int)min_of(W::SIDE, p.cols - c0);
        Pack<u32> v[W::LOADS];
        GPU_UNROLL for (int u = 0; u < W::LOADS; u++) {
            int e = (int)gpu_thread_x + u * UTIL_THREADS, m = e % WIDE_PACKS, c = e / WIDE_PACKS;
            if (c < nc && m * W::PACK < nr) v[u] = *(const Pack<u32> *)(src + c * p.col_pitch + m * W::PACK);
        }
        GPU_UNROLL for (int u = 0; u < W::LOADS; u++) {
            int e = (int)gpu_thread_x + u * UTIL_THREADS, m = e % WIDE_PACKS, c = e / WIDE_PACKS;
            if (c < nc && m * W::PACK < nr) tile[c][m ^ (c / W::PACK % 8)] = v[u];
        }
        gpu_sync();
        GPU_UNROLL for (int e = (int)gpu_thread_x; e < W::UNITS; e += UTIL_THREADS) {
            // eight lanes write 128 bytes of a row; the four rows (of words) of a warp are neighbours
            int groups = W::SIDE / W::PACK, g = e % 8 + e / 32 % (groups / 8) * 8, q = e / 8 % 4 + e / 32 / (groups / 8) * 4;
            if (g * W::PACK >= nc || q * W::PER >= nr) continue;
            u32 w[W::PACK];
            GPU_UNROLL for (int k = 0; k < W::PACK; k++) w[k] = tile[g * W::PACK + k][(q / 4) ^ (g % 8)].v[q % 4];
            GPU_UNROLL for (int half = 0; half < W::PER; half++) {
                Pack<u32> out;
                GPU_UNROLL for (int k = 0; k < 4; k++)
                    out.v[k] = W::PER == 1 ? w[k] : wide_pair(w[2 * k % W::PACK], w[(2 * k + 1) % W::PACK], half);
                *(Pack<u32> *)(dst + (q * W::PER + half) * p.row_pitch + g * W::PACK) = out;
            }
        }
        gpu_sync();
    }
}
GPU_KERNEL(transpose_wide_2, TransposeParams, UTIL_BLOCK) { transpose_wide<u16>(p); }
GPU_KERNEL(transpose_wide_4, TransposeParams, UTIL_BLOCK) { transpose_wide<u32>(p); }

// ---- simplification -------------------------------------------------------------------------------------------------------

static i64 type_nbytes(GpuType t) { return t == GPU_F32 ? 4 : t == GPU_BF16 ? 2 : t == GPU_I64 ? 8 : 1; }

static i64 box_count(const GpuBox &b) {
    i64 n = 1;
    for (int d = 0; d < b.ndim; d++) n *= b.size[d];
    return n;
}

static void box_merge(GpuBox &b) {
    int n = 0;
    for (int d = 0; d < b.ndim; d++) {
        if (b.size[d] == 1) continue;
        if (n > 0 && b.dst_stride[n - 1] == b.size[d] * b.dst_stride[d] && b.src_stride[n - 1] == b.size[d] * b.src_stride[d]) {
            b.size[n - 1] *= b.size[d];
        } else {
            b.size[n] = b.size[d], n++;
        }
        b.dst_stride[n - 1] = b.dst_stride[d], b.src_stride[n - 1] = b.src_stride[d];
    }
    if (n == 0) b.size[0] = b.dst_stride[0] = b.src_stride[0] = 1, n = 1;
    b.ndim = n;
}

// How many elements of the innermost dim can be moved as one. `fill`: src does not count.
static i64 box_width(const GpuBox &b, i64 elem, bool fill) {
    int last = b.ndim - 1;
    if (b.dst_stride[last] != 1 || (!fill && b.src_stride[last] != 1)) return 1;
    i64 w = 16 / elem;
    for (; w > 1; w /= 2) {
        bool fits = b.size[last] % w == 0 && util_aligned(b.dst, w * elem) && (fill || util_aligned(b.src, w * elem));
        for (int d = 0; d < last; d++) fits = fits && b.dst_stride[d] % w == 0 && (fill || b.src_stride[d] % w == 0);
        if (fits) break;
    }
    return w;
}

static void box_widen(GpuBox &b, i64 w) {
    for (int d = 0; d < b.ndim - 1; d++) b.dst_stride[d] /= w, b.src_stride[d] /= w;
    b.size[b.ndim - 1] /= w;
}

static BoxParams box_params(const GpuBox &b) {
    BoxParams p = {b.dst, b.src, {0, 0}, (u32)box_count(b), b.ndim, {}, {}, {}};
    for (int d = 0; d < b.ndim; d++)
        p.div[d] = fast_div_of((u32)b.size[d]), p.to[d] = b.dst_stride[d], p.from[d] = b.src_stride[d];
    return p;
}

// ---- launches -------------------------------------------------------------------------------------------------------------

// Whether 16 bytes at a time lie whole and aligned on both sides.
static bool transpose_packs(const GpuBox &b, i64 elem, int fast) {
    i64 w = 16 / elem;
    int last = b.ndim - 1;
    bool fits = b.size[last] % w == 0 && b.size[fast] % w == 0 && util_aligned(b.dst, 16) && util_aligned(b.src, 16);
    for (int d = 0; d < b.ndim; d++) {
        if (d != last) fits = fits && b.dst_stride[d] % w == 0;
        if (d != fast) fits = fits && b.src_stride[d] % w == 0;
    }
    return fits;
}

static bool box_transpose(void *stream, int nsm, const GpuBox &b, i64 elem) {
    int last = b.ndim - 1, fast = -1;
    for (int d = 0; d < last; d++)
        if (b.src_stride[d] == 1) fast = d;
    if (fast < 0 || elem > 8 || b.dst_stride[last] != 1 || b.src_stride[last] == 0) return false;
    if (b.size[last] < TRANSPOSE_LEAST || b.size[fast] < TRANSPOSE_LEAST) return false;
    bool wide = (elem == 2 || elem == 4) && transpose_packs(b, elem, fast);
    i64 side = elem == 8 ? 32 : wide && elem == 2 ? 128 : 64;
    i64 col_tiles = util_ceil_div(b.size[last], side), bands = util_ceil_div(util_ceil_div(b.size[fast], side), BAND);
    TransposeParams p = {b.dst, b.src, b.size[fast], b.size[last], b.dst_stride[fast], b.src_stride[last],
                         fast_div_of((u32)(col_tiles * BAND)), fast_div_of((u32)bands), 0, 0, {}, {}, {}};
    i64 n = col_tiles * BAND * bands;
    for (int d = 0; d < last; d++) {
        if (d == fast) continue;
        p.size[p.ndim] = fast_div_of((u32)b.size[d]), p.to[p.ndim] = b.dst_stride[d], p.from[p.ndim] = b.src_stride[d], p.ndim++;
        n *= b.size[d];
    }
    if (n >= (i64)1 << 31) return false;  // cannot be: at most BOX_MOST elements, TRANSPOSE_LEAST of them along either side
    p.n = (u32)n;
    GpuDim grid = util_grid_many(nsm, n, 1), block = util_block();
    if (wide && elem == 2) {
        GPU_LAUNCH(transpose_wide_2, stream, grid, block, 0, p);
        return true;
    }
    if (wide) {
        GPU_LAUNCH(transpose_wide_4, stream, grid, block, 0, p);
        return true;
    }
    if (elem == 1) GPU_LAUNCH(transpose_1, stream, grid, block, 0, p);
    else if (elem == 2) GPU_LAUNCH(transpose_2, stream, grid, block, 0, p);
    else if (elem == 4) GPU_LAUNCH(transpose_4, stream, grid, block, 0, p);
    else GPU_LAUNCH(transpose_8, stream, grid, block, 0, p);
    return true;
}

static bool box_splat(void *stream, int nsm, const GpuBox &b, i64 elem) {
    int last = b.ndim - 1;
    if (b.src_stride[last] != 0 || elem > 8) return false;
    i64 w = 16 / elem;
    if (box_width(b, elem, true) != w) return false;
    GpuBox s = b;
    for (int d = 0; d < last; d++) s.dst_stride[d] /= w;
    s.size[last] /= w;
    BoxParams p = box_params(s);
    GpuDim grid = util_grid(nsm, p.n, UTIL_BLOCK * UNROLL), block = util_block();
    if (elem == 1) GPU_LAUNCH(box_splat_1, stream, grid, block, 0, p);
    else if (elem == 2) GPU_LAUNCH(box_splat_2, stream, grid, block, 0, p);
    else if (elem == 4) GPU_LAUNCH(box_splat_4, stream, grid, block, 0, p);
    else GPU_LAUNCH(box_splat_8, stream, grid, block, 0, p);
    return true;
}

static void box_plain(void *stream, int nsm, const GpuBox &b, i64 elem) {
    BoxParams p = box_params(b);
    GpuDim grid = util_grid(nsm, p.n, UTIL_BLOCK * UNROLL), block = util_block();
    if (elem == 1) GPU_LAUNCH(box_copy_1, stream, grid, block, 0, p);
    else if (elem == 2) GPU_LAUNCH(box_copy_2, stream, grid, block, 0, p);
    else if (elem == 4) GPU_LAUNCH(box_copy_4, stream, grid, block, 0, p);
    else if (elem == 8) GPU_LAUNCH(box_copy_8, stream, grid, block, 0, p);
    else GPU_LAUNCH(box_copy_16, stream, grid, block, 0, p);
}

static void box_reduce(void *stream, int nsm, const GpuBox &b) {
    BoxParams p = box_params(b);
    GpuDim grid = util_grid(nsm, p.n, UTIL_BLOCK * UNROLL), block = util_block();
    bool sum = b.reduce == GPU_SUM;
    if (b.type == GPU_BOOL) GPU_LAUNCH(box_or, stream, grid, block, 0, p);
    else if (b.type == GPU_F32 && sum) GPU_LAUNCH(box_sum_f32, stream, grid, block, 0, p);
    else if (b.type == GPU_F32) GPU_LAUNCH(box_max_f32, stream, grid, block, 0, p);
    else if (b.type == GPU_BF16 && sum) GPU_LAUNCH(box_sum_bf16, stream, grid, block, 0, p);
    else if (b.type == GPU_BF16) GPU_LAUNCH(box_max_bf16, stream, grid, block, 0, p);
    else if (sum) GPU_LAUNCH(box_sum_i64, stream, grid, block, 0, p);
    else GPU_LAUNCH(box_max_i64, stream, grid, block, 0, p);
}

// The two parts of a box cut at index `at` of dim d.
static GpuBox box_part(const GpuBox &b, int d, i64 at, bool second, i64 elem) {
    GpuBox part = b;
    part.size[d] = second ? b.size[d] - at : at;
    if (!second) return part;
    part.dst = (char *)b.dst + at * b.dst_stride[d] * elem;
    if (b.src) part.src = (const char *)b.src + at * b.src_stride[d] * elem;
    return part;
}

static void box_copy_simple(void *stream, int nsm, const GpuBox &b) {
    i64 elem = type_nbytes(b.type);
    if (box_count(b) > BOX_MOST) {
        int d = 0;
        for (int i = 1; i < b.ndim; i++)
            if (b.size[d] == 1) d = i;
        i64 half = b.size[d] / 2, lanes = 16 / elem;
        if (d == b.ndim - 1 && half > lanes) half -= half % lanes;  // both parts stay aligned
        box_copy_simple(stream, nsm, box_part(b, d, half, false, elem));
        box_copy_simple(stream, nsm, box_part(b, d, half, true, elem));
        return;
    }
    if (b.reduce != GPU_OVERWRITE) {
        box_reduce(stream, nsm, b);
        return;
    }
    i64 lanes = 16 / elem, n = b.size[0];
    if (b.ndim == 1 && b.dst_stride[0] == 1 && b.src_stride[0] <= 1 && n % lanes && n > lanes) {  // all but the last few are wide
        box_copy_simple(stream, nsm, box_part(b, 0, n - n % lanes, false, elem));
        box_copy_simple(stream, nsm, box_part(b, 0, n - n % lanes, true, elem));
        return;
    }
    GpuBox s = b;
    i64 w = box_width(s, elem, false);
    if (w > 1) box_widen(s, w), box_merge(s), elem *= w;
    if (box_splat(stream, nsm, s, elem) || box_transpose(stream, nsm, s, elem)) return;
    box_plain(stream, nsm, s, elem);
}

extern "C" void gpu_copy_box(void *stream, int nsm, const GpuBox *b) {
    if (box_count(*b) == 0) return;
    GpuBox s = *b;
    box_merge(s);
    box_copy_simple(stream, nsm, s);
}

// ---- fill -----------------------------------------------------------------------------------------------------------------

template <class T> GPU_FN void fill(const BoxParams &p) {
    T value = (T)p.value[0];  // the pattern repeats it
    for (u32 i = (u32)gpu_thread(); i < p.n; i += (u32)gpu_nthreads()) {
        i64 to, from;
        box_offsets(p, i, &to, &from);
        ((T *)p.dst)[to] = value;
    }
}
GPU_KERNEL(fill_1, BoxParams, UTIL_BLOCK) { fill<u8>(p); }
GPU_KERNEL(fill_2, BoxParams, UTIL_BLOCK) { fill<u16>(p); }
GPU_KERNEL(fill_4, BoxParams, UTIL_BLOCK) { fill<u32>(p); }
GPU_KERNEL(fill_8, BoxParams, UTIL_BLOCK) { fill<u64>(p); }
GPU_KERNEL(fill_16, BoxParams, UTIL_BLOCK) {
    Wide value = {{p.value[0], p.value[1]}};
    for (u32 i = (u32)gpu_thread(); i < p.n; i += (u32)gpu_nthreads()) {
        i64 to, from;
        box_offsets(p, i, &to, &from);
        ((Wide *)p.dst)[to] = value;
    }
}

static void box_fill(void *stream, int nsm, const GpuBox &b, u64 pattern) {
    i64 elem = type_nbytes(b.type), lanes = 16 / elem, n = b.size[0];
    if (box_count(b) > BOX_MOST) {
        int d = 0;
        for (int i = 1; i < b.ndim; i++)
            if (b.size[d] == 1) d = i;
        i64 half = b.size[d] / 2;
        if (d == b.ndim - 1 && half > lanes) half -= half % lanes;
        box_fill(stream, nsm, box_part(b, d, half, false, elem), pattern);
        box_fill(stream, nsm, box_part(b, d, half, true, elem), pattern);
        return;
    }
    if (b.ndim == 1 && b.dst_stride[0] == 1 && n % lanes && n > lanes) {
        box_fill(stream, nsm, box_part(b, 0, n - n % lanes, false, elem), pattern);
        box_fill(stream, nsm, box_part(b, 0, n - n % lanes, true, elem), pattern);
        return;
    }
    GpuBox s = b;
    i64 w = box_width(s, elem, true);
    if (w > 1) box_widen(s, w), elem *= w;
    BoxParams p = box_params(s);
    p.value[0] = p.value[1] = pattern;
    GpuDim grid = util_grid(nsm, p.n, UTIL_BLOCK), block = util_block();
    if (elem == 1) GPU_LAUNCH(fill_1, stream, grid, block, 0, p);
    else if (elem == 2) GPU_LAUNCH(fill_2, stream, grid, block, 0, p);
    else if (elem == 4) GPU_LAUNCH(fill_4, stream, grid, block, 0, p);
    else if (elem == 8) GPU_LAUNCH(fill_8, stream, grid, block, 0, p);
    else GPU_LAUNCH(fill_16, stream, grid, block, 0, p);
}

// The element's bytes, repeated over eight.
static u64 fill_pattern(GpuType t, double value) {
    union { float f; u32 u; } bits;
    bits.f = (float)value;
    u64 h;
    switch (t) {
    case GPU_F32: return bits.u | (u64)bits.u << 32;
    case GPU_BF16:
        h = bits.f != bits.f ? 0x7fc0u : (bits.u + 0x7fffu + ((bits.u >> 16) & 1u)) >> 16;
        return h * 0x0001000100010001ull;
    case GPU_BOOL: return value != 0 ? 0x0101010101010101ull : 0;
    default: return (u64)(i64)value;
    }
}

extern "C" void gpu_fill_box(void *stream, int nsm, const GpuBox *b, double value) {
    if (box_count(*b) == 0) return;
    GpuBox s = *b;
    s.src = 0;
    for (int d = 0; d < s.ndim; d++) s.src_stride[d] = s.dst_stride[d];  // so that dims merge where dst's do
    box_merge(s);
    box_fill(stream, nsm, s, fill_pattern(b->type, value));
}

extern "C" void gpu_fill(void *stream, int nsm, void *dst, GpuType t, long long n, double value) {
    GpuBox b = {dst, 0, 1, t, GPU_OVERWRITE, {n}, {1}, {1}};
    gpu_fill_box(stream, nsm, &b, value);
}
