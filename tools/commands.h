// The autosp command: one file per subcommand. Each returns the process's exit code.
#pragma once
#include "driver/driver.h"

int command_check(int argc, char **argv);
int command_plan(int argc, char **argv);
int command_dump(int argc, char **argv);
int command_train(int argc, char **argv);
int command_calibrate(int argc, char **argv);

// 0 done, 1 compared and different, 2 refused, 3 wrong usage.
enum { EXIT_DONE = 0, EXIT_DIFFERENT = 1, EXIT_REFUSED = 2, EXIT_USAGE = 3 };
