// Zip reader over a mapping: end record, zip64, central directory, local headers. Layout after PKWARE's APPNOTE 6.3.
// The central directory is the authority; local headers must agree with it, members may not overlap, and every offset is checked
// against the file before it is followed.
#include "import/zip.h"
#include <zlib.h>
#include "import/mapfile.h"

enum {
    END_NBYTES = 22, LOCATOR_NBYTES = 20, END64_NBYTES = 56, CENTRAL_NBYTES = 46, LOCAL_NBYTES = 30,
    FLAG_ENCRYPTED = 1, FLAG_DESCRIPTOR = 8,
};
// Deflate cannot exceed about 1030:1, and real JSON or weights stay far below 200:1; small members may be anything.
#define BOMB_RATIO 200
#define BOMB_FLOOR (16ll << 20)
#define BOMB_TOTAL (256ll << 20)

static uint32_t u16(const uint8_t *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }
static uint32_t u32(const uint8_t *p) { return u16(p) | u16(p + 2) << 16; }
static uint64_t u64(const uint8_t *p) { return u32(p) | (uint64_t)u32(p + 4) << 32; }

typedef struct Directory {
    uint64_t offset, nbytes, count;
} Directory;

// [begin, end) of the file that a member's header and bytes occupy.
typedef struct Extent {
    int64_t begin, end;
    const char *name;
} Extent;

// Position of the end record: the last signature whose comment reaches exactly to the end of the file.
static int64_t find_end(const Zip *z) {
    int64_t last = z->nbytes - END_NBYTES, first = max_i64(0, last - 65535);
    for (int64_t i = last; i >= first; i--)
        if (u32(z->data + i) == 0x06054b50 && i + END_NBYTES + (int64_t)u16(z->data + i + 20) == z->nbytes) return i;
    return -1;
}

static Status read_end64(const Zip *z, int64_t end, Directory *dir, int64_t *limit, Diag *d) {
    int64_t loc = end - LOCATOR_NBYTES;
    if (loc < 0 || u32(z->data + loc) != 0x07064b50) return ST_OK;
    uint64_t at = u64(z->data + loc + 8);
    if (u32(z->data + loc + 4) != 0 || u32(z->data + loc + 16) > 1)
        return diag_error(d, ST_UNSUPPORTED, "zip archives over several disks are not supported");
    if (loc < END64_NBYTES || at > (uint64_t)(loc - END64_NBYTES) || u32(z->data + at) != 0x06064b50)
        return diag_error(d, ST_INPUT, "the zip64 end record at offset %llu is missing or damaged", (unsigned long long)at);
    const uint8_t *p = z->data + at;
    if (u32(p + 16) != 0 || u32(p + 20) != 0 || u64(p + 24) != u64(p + 32))
        return diag_error(d, ST_INPUT, "the zip64 end record contradicts itself about disks or member counts");
    *dir = (Directory){.count = u64(p + 32), .nbytes = u64(p + 40), .offset = u64(p + 48)};
    *limit = (int64_t)at;
    return ST_OK;
}

static Status read_end(const Zip *z, Directory *dir, Diag *d) {
    int64_t end = z->nbytes >= END_NBYTES ? find_end(z) : -1;
    if (end < 0)
        return diag_error(d, ST_INPUT, "not a zip archive, or cut off: no end-of-directory record in %lld bytes",
                          (long long)z->nbytes);
    const uint8_t *p = z->data + end;
    *dir = (Directory){.count = u16(p + 10), .nbytes = u32(p + 12), .offset = u32(p + 16)};
    bool wide = u16(p + 10) == 0xffff || u32(p + 12) == 0xffffffff || u32(p + 16) == 0xffffffff;
    if (!wide && (u16(p + 4) != 0 || u16(p + 6) != 0 || u16(p + 8) != u16(p + 10)))
        return diag_error(d, ST_UNSUPPORTED, "zip archives over several disks are not supported");
    int64_t limit = end;
    TRY(read_end64(z, end, dir, &limit, d));
    if (dir->offset > (uint64_t)limit || dir->nbytes > (uint64_t)limit - dir->offset)
        return diag_error(d, ST_INPUT, "the zip directory (%llu bytes at offset %llu) lies outside the file of %lld bytes",
                          (unsigned long long)dir->nbytes, (unsigned long long)dir->offset, (long long)z->nbytes);
    if (dir->count > dir->nbytes / CENTRAL_NBYTES)
        return diag_error(d, ST_INPUT, "the zip directory of %llu bytes cannot hold its %llu members",
                          (unsigned long long)dir->nbytes, (unsigned long long)dir->count);
    return ST_OK;
}

// Replaces 32-bit fields that say "see the zip64 extra field".
static Status read_extra64(const uint8_t *p, int64_t n, uint64_t *nbytes, uint64_t *npacked, uint64_t *offset, Diag *d) {
    uint64_t *want[3] = {nbytes, npacked, offset};
    bool need = *nbytes == 0xffffffff || *npacked == 0xffffffff || *offset == 0xffffffff;
    while (n >= 4) {
        int64_t len = u16(p + 2);
        if (len > n - 4) return diag_error(d, ST_INPUT, "damaged extra field");
        if (u16(p) == 1) {
            int64_t at = 0;
            for (int i = 0; i < 3; i++) {
                if (*want[i] != 0xffffffff) continue;
                if (at + 8 > len) return diag_error(d, ST_INPUT, "zip64 extra field too short");
                *want[i] = u64(p + 4 + at);
                at += 8;
            }
            return ST_OK;
        }
        p += 4 + len;
        n -= 4 + len;
    }
    return need ? diag_error(d, ST_INPUT, "zip64 sizes are missing") : ST_OK;
}

static bool name_is_safe(const char *s, size_t n) {
    if (n == 0 || s[0] == '/' || memchr(s, 0, n) || memchr(s, '\\', n)) return false;
    for (size_t i = 0; i + 1 < n; i++)
        if (s[i] == '.' && s[i + 1] == '.' && (i == 0 || s[i - 1] == '/') && (i + 2 == n || s[i + 2] == '/')) return false;
    return true;
}

// Checks the local header against the directory's entry and finds the bytes.
static Status read_local(const Zip *z, ZipMember *m, uint64_t offset, int64_t limit, uint32_t flags, Extent *ext, Diag *d) {
    size_t nname = strlen(m->name);
    if (limit < LOCAL_NBYTES || offset > (uint64_t)(limit - LOCAL_NBYTES) || u32(z->data + offset) != 0x04034b50)
        return diag_error(d, ST_INPUT, "no local header at offset %llu", (unsigned long long)offset);
    const uint8_t *p = z->data + offset;
    int64_t at = (int64_t)offset + LOCAL_NBYTES, room = limit - at, skip = (int64_t)u16(p + 26) + (int64_t)u16(p + 28);
    if (skip > room || u16(p + 26) != nname || memcmp(z->data + at, m->name, nname) != 0)
        return diag_error(d, ST_INPUT, "its local header has another name");
    if (u16(p + 8) != (uint32_t)m->method || ((u16(p + 6) ^ flags) & FLAG_ENCRYPTED))
        return diag_error(d, ST_INPUT, "its local header has another method");
    bool sized = !(u16(p + 6) & FLAG_DESCRIPTOR) && u32(p + 18) != 0xffffffff && u32(p + 22) != 0xffffffff;
    if (sized && (u32(p + 14) != m->crc || u32(p + 18) != (uint64_t)m->npacked || u32(p + 22) != (uint64_t)m->nbytes))
        return diag_error(d, ST_INPUT, "its local header and the directory disagree about size or checksum");
    if (m->npacked > room - skip)
        return diag_error(d, ST_INPUT, "its %lld bytes reach past the data (cut off?)", (long long)m->npacked);
    m->packed = z->data + at + skip;
    *ext = (Extent){(int64_t)offset, at + skip + m->npacked, m->name};
    return ST_OK;
}

// One directory entry at p (n bytes left); *used says how long it is.
static Status read_entry(Arena *a, Zip *z, const Directory *dir, const uint8_t *p, int64_t n, ZipMember *m, Extent *ext,
                         int64_t *used, Diag *d) {
    if (n < CENTRAL_NBYTES || u32(p) != 0x02014b50) return diag_error(d, ST_INPUT, "damaged zip directory");
    int64_t nname = u16(p + 28), nextra = u16(p + 30), ncomment = u16(p + 32);
    *used = CENTRAL_NBYTES + nname + nextra + ncomment;
    if (*used > n) return diag_error(d, ST_INPUT, "zip directory cut off");
    const char *name = (const char *)p + CENTRAL_NBYTES;
    if (!name_is_safe(name, (size_t)nname)) return diag_error(d, ST_INPUT, "a member has an empty, absolute or '..' name");
    uint64_t nbytes = u32(p + 24), npacked = u32(p + 20), offset = u32(p + 42);
    uint32_t flags = u16(p + 8);
    *m = (ZipMember){.name = arena_strndup(a, name, (size_t)nname), .method = (int)u16(p + 10), .crc = u32(p + 16)};
    Status st = read_extra64(p + CENTRAL_NBYTES + nname, nextra, &nbytes, &npacked, &offset, d);
    if (st == ST_OK && (flags & FLAG_ENCRYPTED)) st = diag_error(d, ST_UNSUPPORTED, "encrypted; save it without a password");
    if (st == ST_OK && m->method != 0 && m->method != 8)
        st = diag_error(d, ST_UNSUPPORTED, "compression method %d is not supported (stored and deflate are)", m->method);
    if (st == ST_OK && (npacked > (uint64_t)z->nbytes || nbytes > INT64_MAX / 2 || (m->method == 0 && nbytes != npacked)))
        st = diag_error(d, ST_INPUT, "impossible size (%llu bytes from %llu)", (unsigned long long)nbytes,
                        (unsigned long long)npacked);
    m->nbytes = (int64_t)nbytes;
    m->npacked = (int64_t)npacked;
    if (st == ST_OK) st = read_local(z, m, offset, (int64_t)dir->offset, flags, ext, d);
    if (st != ST_OK) return diag_where(d, "member '%s'", m->name);
    return ST_OK;
}

static int extent_order(const void *x, const void *y) {
    const Extent *a = x, *b = y;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    return a->end < b->end ? -1 : a->end > b->end;
}

static Status read_directory(Arena *a, Zip *z, Diag *d) {
    Directory dir = {0};
    TRY(read_end(z, &dir, d));
    int64_t count = (int64_t)dir.count, left = (int64_t)dir.nbytes;
    const uint8_t *p = z->data + dir.offset;
    z->member = ARENA_ARRAY(a, ZipMember, count);
    z->index = map_new(a);
    Extent *ext = ARENA_ARRAY(a, Extent, count);
    for (int64_t i = 0; i < count; i++) {
        ZipMember *m = &z->member[i];
        int64_t used = 0, other;
        TRY(read_entry(a, z, &dir, p, left, m, &ext[i], &used, d));
        if (map_get(z->index, m->name, &other)) return diag_error(d, ST_INPUT, "two members are named '%s'", m->name);
        map_set(z->index, m->name, i);
        p += used;
        left -= used;
        z->nmember++;
    }
    if (left != 0) return diag_error(d, ST_INPUT, "%lld stray bytes in the zip directory", (long long)left);
    if (count > 1) qsort(ext, (size_t)count, sizeof *ext, extent_order);
    for (int64_t i = 1; i < count; i++)
        if (ext[i].begin < ext[i - 1].end)
            return diag_error(d, ST_INPUT, "members '%s' and '%s' overlap", ext[i - 1].name, ext[i].name);
    return ST_OK;
}

Status zip_open_bytes(Arena *a, const char *name, const void *data, int64_t nbytes, Zip **out, Diag *d) {
    Zip *z = ARENA_NEW(a, Zip);
    *z = (Zip){.path = arena_strdup(a, name), .data = data, .nbytes = nbytes};
    if (read_directory(a, z, d) != ST_OK) return diag_where(d, "%s", name);
    *out = z;
    return ST_OK;
}

Status zip_open(Arena *a, const char *path, Zip **out, Diag *d) {
    const uint8_t *data;
    int64_t nbytes;
    TRY(file_map(a, path, &data, &nbytes, d));
    return zip_open_bytes(a, path, data, nbytes, out, d);
}

ZipMember *zip_find(const Zip *z, const char *name) {
    int64_t i;
    return map_get(z->index, name, &i) ? &z->member[i] : NULL;
}

static uint32_t crc_of(const uint8_t *p, int64_t n) {
    return (uint32_t)crc32_z(crc32_z(0, NULL, 0), p, (size_t)n);
}

static Status inflate_member(const ZipMember *m, uint8_t *dst, Diag *d) {
    z_stream s = {0};
    if (inflateInit2(&s, -MAX_WBITS) != Z_OK) return diag_error(d, ST_MEMORY, "out of memory");
    int64_t in = 0, done = 0;
    int rc = Z_OK;
    while (rc == Z_OK) {
        // zlib counts in 32 bits: feed it in pieces
        s.next_in = (Bytef *)(m->packed + in);
        s.avail_in = (uInt)min_i64(m->npacked - in, 1 << 30);
        s.next_out = dst + done;
        s.avail_out = (uInt)min_i64(m->nbytes - done, 1 << 30);
        uInt in0 = s.avail_in, out0 = s.avail_out;
        rc = inflate(&s, Z_NO_FLUSH);
        in += in0 - s.avail_in;
        done += out0 - s.avail_out;
        if (rc == Z_OK && in0 == s.avail_in && out0 == s.avail_out) break;
    }
    inflateEnd(&s);
    if (rc != Z_STREAM_END || done != m->nbytes || in != m->npacked)
        return diag_error(d, ST_INPUT, "damaged compressed data, or more of it than the %lld bytes declared",
                          (long long)m->nbytes);
    return ST_OK;
}

static Status member_inflate(Zip *z, Arena *a, ZipMember *m, Diag *d) {
    if (m->nbytes > BOMB_FLOOR && m->nbytes / BOMB_RATIO > m->npacked)
        return diag_error(d, ST_INPUT, "%lld bytes from %lld: refused as a zip bomb", (long long)m->nbytes,
                          (long long)m->npacked);
    z->ninflated += m->nbytes;
    if (z->ninflated > BOMB_TOTAL && z->ninflated / BOMB_RATIO > z->nbytes)
        return diag_error(d, ST_INPUT, "its members inflate to over %lld bytes: refused as a zip bomb", (long long)z->ninflated);
    void *dst;
    TRY(tensor_memory(a, m->nbytes, &dst, d));
    TRY(inflate_member(m, dst, d));
    m->plain = dst;
    return ST_OK;
}

Status zip_bytes(Zip *z, Arena *a, ZipMember *m, int64_t limit, bool check, const void **out, Diag *d) {
    Status st = ST_OK;
    if (m->nbytes > limit)
        st = diag_error(d, ST_INPUT, "%lld bytes where at most %lld make sense", (long long)m->nbytes, (long long)limit);
    if (st == ST_OK && !m->plain) {
        if (m->method == 0) m->plain = m->packed;
        else st = member_inflate(z, a, m, d);
    }
    if (st == ST_OK && !m->crc_checked && (check || m->method != 0)) {
        if (crc_of(m->plain, m->nbytes) != m->crc)
            st = diag_error(d, ST_INPUT, "its checksum does not match: the file is damaged");
        m->crc_checked = st == ST_OK;
    }
    if (st != ST_OK) return diag_where(d, "member '%s'", m->name);
    *out = m->plain;
    return ST_OK;
}
