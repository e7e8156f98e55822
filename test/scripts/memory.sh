#!/bin/sh
# memory.sh AUTOSP DATA: see test/memory.py
exec python3 test/memory.py "$1" "$2"
