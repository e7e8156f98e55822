#!/bin/sh
# determinism.sh AUTOSP DATA: see test/determinism.py
exec python3 test/determinism.py "$1" "$2"
