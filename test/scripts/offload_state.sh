#!/bin/sh
# Training with the optimizer's state in host memory: the same losses, model and optimizer to the byte as without, also when it is resumed in
# the other way half of the time. Usage: offload_state.sh AUTOSP DATA
set -eu
autosp=$1
model=$2/fixtures/llama/model.pt2
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
seq 1 4000 >"$tmp/text"
train() {
    out=$1
    shift
    "$autosp" train "$model" --data "$tmp/text" --data-format bytes --seq 65 --batch 2 --threads 1 --random-init --quiet --out "$tmp/$out" "$@" >"$tmp/$out.log" 2>&1 ||
        { cat "$tmp/$out.log"; exit 1; }
}
same() {
    cmp "$tmp/$1/model.safetensors" "$tmp/$2/model.safetensors"
    cmp "$tmp/$1/optimizer.safetensors" "$tmp/$2/optimizer.safetensors"
}
for ranks in 1 3; do
    train "plain$ranks" --ranks $ranks --steps 6 --lr 1e-3 --warmup 0
    train "host$ranks" --ranks $ranks --steps 6 --lr 1e-3 --warmup 0 --offload-state --poison
    same "plain$ranks" "host$ranks"
    grep -q "host memory for offloaded values: planned" "$tmp/host$ranks.log"
done
cp -r "$tmp/plain1" "$tmp/there"
cp -r "$tmp/host1" "$tmp/back"
train plain1 --steps 9 --lr 1e-3 --warmup 0 --resume
train there --steps 9 --lr 1e-3 --warmup 0 --resume --offload-state
train back --steps 9 --lr 1e-3 --warmup 0 --resume
same plain1 there
same plain1 back
cmp "$tmp/plain1/model.safetensors" "$tmp/host3/model.safetensors" >/dev/null 2>&1 && { echo "three more steps changed nothing"; exit 1; }
"$autosp" plan "$model" --ranks 2 --offload-state --json | python3 -c '
import json, sys
for r in json.load(sys.stdin)["per_rank"]:
    assert r["host_nbytes"] > 0 and r["host_nbytes"] >= r["host_lower_bound_nbytes"], r
'
