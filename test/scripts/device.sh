#!/bin/sh
# What the command says of devices, with or without one: planning for a GPU needs none; running on one that is not there is refused with
# what to do. device.sh AUTOSP DATA
set -u
autosp=$1 model=$2/fixtures/llama/model.pt2
bad=0
expect() {  # text, then the command: must fail and say so
    text=$1
    shift
    if out=$("$@" 2>&1); then echo "no error: $*"; bad=1; fi
    case $out in *"$text"*) ;; *) echo "$*: $out"; bad=1 ;; esac
}
if "$autosp" --version | grep -q "cuda (fp32"; then
    "$autosp" plan "$model" --seq 64 --device cuda --dtype bf16 >/dev/null || bad=1
    if ! "$autosp" --version | grep -q "to use:"; then
        expect "no NVIDIA GPU can be used here" "$autosp" check "$model" --seq 64 --device cuda
        expect "no NVIDIA GPU can be used here" "$autosp" check "$model" --seq 64 --ranks 2 --device cuda --processes
    fi
else
    expect "built without it" "$autosp" plan "$model" --seq 64 --device cuda
fi
expect "there are cpu and cuda" "$autosp" plan "$model" --seq 64 --device tpu
expect "there are fp32 and bf16" "$autosp" plan "$model" --seq 64 --dtype fp8
expect "ranks as processes need a device" "$autosp" train "$model" --seq 64 --steps 1 --data "$0" --processes --quiet --out "${TMPDIR:-/tmp}/autosp-device"
[ $bad = 0 ]
