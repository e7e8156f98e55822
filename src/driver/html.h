// One page that shows a plan: memory over the step, what runs on which stream, what was decided.
#pragma once
#include "driver/driver.h"

// Writes `path`: HTML with its styles and drawings in it, nothing is loaded from elsewhere. Of the fullest rank; seconds are predicted.
Status plan_html(const char *path, const Compiled *c, Diag *d);
