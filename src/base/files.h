// Writing files whole or not at all.
#pragma once
#include "base/diag.h"

// Puts n bytes at `path` through a temporary file beside it and a rename: on any error the old file is untouched and nothing is
// left. What is there and is no regular file (a device, a folder) is refused: a rename would take its place.
Status file_replace(const char *path, const void *data, size_t n, Diag *d);
// The refusal alone, for those who write in pieces.
Status file_check_replaceable(const char *path, Diag *d);
