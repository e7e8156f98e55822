#!/bin/sh
# Device models on the command line: a plan for each, files that are refused, and one that calibrate measures here (on the emulated GPU
# where the command has that one). device_model.sh AUTOSP DATA
set -u
autosp=$1 model=$2/fixtures/llama/model.pt2
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
bad=0
fail() { echo "$*"; bad=1; }
expect() {  # text, then the command: must fail and say so
    text=$1
    shift
    if out=$("$@" 2>&1); then fail "no error: $*"; fi
    case $out in *"$text"*) ;; *) fail "$*: $out" ;; esac
}
says() {  # text, then the command: must succeed and say so
    text=$1
    shift
    out=$("$@" 2>&1) || fail "failed: $*: $out"
    case $out in *"$text"*) ;; *) fail "$*: no \"$text\" in: $out" ;; esac
}
version=$("$autosp" --version)
says "device model cpu:" "$autosp" plan "$model" --seq 64
case $version in *"cuda (fp32"*)
    says "device model h100: NVIDIA H100" "$autosp" plan "$model" --seq 64 --device h100
    says "one h200" "$autosp" plan "$model" --seq 64 --device h200
    says "its numbers: published" "$autosp" plan "$model" --seq 64 --device a100-80g --ranks 2
    says "no HIP backend yet" "$autosp" plan "$model" --seq 64 --device mi300x --dtype bf16
    says '"measured": false' "$autosp" plan "$model" --seq 64 --device mi300x --json
    expect "what runs here is --device cuda" "$autosp" check "$model" --seq 64 --device h100
    ;;
esac
expect "to plan for, also the device models h100, h200, a100-80g, mi300x, cpu" "$autosp" plan "$model" --seq 64 --device tpu
expect "$dir/none.json" "$autosp" plan "$model" --seq 64 --device-model "$dir/none.json"
echo '{"autosp_device": 1, "name": "x"}' >"$dir/short.json"
expect "short.json: about: is missing" "$autosp" plan "$model" --seq 64 --device-model "$dir/short.json"
expect "usage: autosp calibrate" "$autosp" calibrate -x
expect "there are cpu and cuda" "$autosp" calibrate --device tpu
expect "between 1 and 3600" "$autosp" calibrate --seconds 0

device=cpu
case $version in *"emulated"*) device=cuda ;; esac
says "product f32 x w^T" "$autosp" calibrate --device $device --seconds 1 --name here -o "$dir/here.json"
says "device model here:" "$autosp" plan "$model" --seq 64 --device-model "$dir/here.json"
says "measured by autosp calibrate" "$autosp" plan "$model" --seq 64 --device $device --device-model "$dir/here.json"
if [ $device = cpu ]; then
    expect "it describes the backend cpu, not cuda" "$autosp" plan "$model" --seq 64 --device cuda --device-model "$dir/here.json"
    # predicted beside measured, on the CPU too
    head -c 4000 "$autosp" >"$dir/bytes"
    says "predicted by the device model here" "$autosp" train "$model" --data "$dir/bytes" --seq 64 --steps 2 --random-init --no-save \
        --quiet --profile --device-model "$dir/here.json" --out "$dir/out"
fi
[ $bad = 0 ]
