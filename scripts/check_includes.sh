#!/bin/sh
# The code's shape, checked: includes only go up the list of folders, files stay below 800 lines and functions below 80.
exec python3 "$(dirname "$0")/check_includes.py" "$(dirname "$0")/.."
