#!/bin/sh
# IR goldens: test/ir/*.ir say what to run and what to find in what it prints (test/ir_goldens.py).
# ir_goldens.sh AUTOSP DATA
exec python3 test/ir_goldens.py "$1" "$2" test/ir/*.ir
