// Backends by name.
#pragma once
#include "backend/backend.h"

// "cpu", or "cuda" where it was built in; else an error that says how to get it.
Status backend_find(const char *name, const Backend **out, Diag *d);
bool backend_built(const char *name);
