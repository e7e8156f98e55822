#!/bin/sh
# All tests: units, generated op tests and fuzzers under ASan+UBSan; the threaded runtime under TSan; fixtures, speed-sensitive
# and end-to-end tests on an optimised build. ctest's summary of each build is printed; the last one covers them all.
set -eu
cd "$(dirname "$0")/.."
jobs=$(nproc)
configure() { cmake -S . -B "$1" -G Ninja "$2" "$3" >"$1.log" 2>&1 || { cat "$1.log"; exit 1; }; rm -f "$1.log"; }
configure build-test -DCMAKE_BUILD_TYPE=Release -DAUTOSP_TESTS=ON
configure build-asan -DCMAKE_BUILD_TYPE=Debug -DAUTOSP_SANITIZE=ON
configure build-tsan -DCMAKE_BUILD_TYPE=Debug -DAUTOSP_TSAN=ON
for b in build-test build-asan build-tsan; do
    echo "building $b"
    cmake --build $b >$b.log 2>&1 || { tail -n 60 $b.log; exit 1; }
    rm -f $b.log
done
# The optimised build's test list includes the other two builds' tests (test/CMakeLists.txt), so that one summary counts all.
exec ctest --test-dir build-test --output-on-failure -j "$jobs"
