// A plan as people and programs read it.
#pragma once
#include "driver/driver.h"

void plan_report_text(FILE *f, const Compiled *c, bool every_collective);
Status plan_report_json(FILE *f, const Compiled *c, Diag *d);
