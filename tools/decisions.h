// Saved decisions of a plan (JSON): what `plan --save` keeps and `--decisions` replays, at any length and rank count.
#pragma once
#include "driver/driver.h"

Status decisions_save(const char *path, const Compiled *c, Diag *d);
Status decisions_load(Arena *a, const char *path, CompileOptions *o, Diag *d);
