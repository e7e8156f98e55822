#!/bin/sh
# Bad input is refused with words, never with a crash: test/bad_input.py.  bad_input.sh AUTOSP DATA ASAN_BUILD
exec python3 test/bad_input.py "$@"
