// Reads zip archives as torch.export writes them. Everything in the file is checked before it is believed.
#pragma once
#include "base/arena.h"
#include "base/containers.h"
#include "base/diag.h"

typedef struct ZipMember {
    const char *name;
    int method;              // 0 stored, 8 deflated (anything else was refused)
    uint32_t crc;
    int64_t nbytes;          // uncompressed
    int64_t npacked;         // as stored in the file
    const uint8_t *packed;   // into the mapping
    const void *plain;       // bytes already handed out by zip_bytes
    bool crc_checked;
} ZipMember;

typedef struct Zip {
    const char *path;        // for messages
    const uint8_t *data;
    int64_t nbytes;
    int64_t nmember;
    ZipMember *member;
    Map *index;              // name -> member
    int64_t ninflated;       // bytes inflated so far, against the bomb limit
} Zip;

Status zip_open(Arena *a, const char *path, Zip **out, Diag *d);
// The same over bytes in memory, which must outlive the arena. `name` is used in messages.
Status zip_open_bytes(Arena *a, const char *name, const void *data, int64_t nbytes, Zip **out, Diag *d);
ZipMember *zip_find(const Zip *z, const char *name);  // NULL if absent
// The member's bytes: in place when stored, inflated (once) into memory of arena `a` otherwise. With `check` its CRC is compared
// (always when inflated). Refuses members above `limit` bytes.
Status zip_bytes(Zip *z, Arena *a, ZipMember *m, int64_t limit, bool check, const void **out, Diag *d);
