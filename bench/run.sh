#!/bin/sh
# make bench: ratios measured side by side in one run. Absolute figures are of this machine and this moment.
set -eu
cd "$(dirname "$0")/.."
build=build
cmake -S . -B $build -G Ninja -DCMAKE_BUILD_TYPE=Release -DAUTOSP_TESTS=OFF -DAUTOSP_BENCH=ON >/dev/null
cmake --build $build >/dev/null
echo "== attention and matrix products alone, beside the BLAS"
$build/bench_attention
echo "== a 25 M-parameter Llama shape, whole step with AdamW, S = 4096"
$build/bench_step bench/llama-25m.pt2 4096
echo "== import and compile: Llama 3.1 8B, S = 131072, P = 8"
if [ -f bench/llama-3.1-8b.pt2 ] || { command -v xz >/dev/null && xz -dkf bench/llama-3.1-8b.pt2.xz; }; then
    start=$(date +%s.%N)
    $build/autosp plan bench/llama-3.1-8b.pt2 --batch 1 --seq 131072 --ranks 8 | sed -n 2p
    end=$(date +%s.%N)
    echo "wall: $(echo "$start $end" | awk '{printf "%.2f s", $2 - $1}')"
fi
