#!/bin/sh
# How many kernels a layer takes besides products and attention where the backend fuses rows (dump --fuse-rows), and that no
# movement, sum or pointwise op is left between them but those that bring heads into and out of attention. A layer: from one
# attention to the next.
#   forward:  norm with the residual add before it (twice), rotary of queries and of keys, gated product:    5, and 2 permutes
#   backward: gated product, norm with residual and weight gradient (twice), rotary of queries and of keys:  5, and 2 permutes
# With norms of queries and keys these join the rotary embeddings; their statistics come out in the order of the heads (2 small
# permutes).
# kernels.sh AUTOSP DATA [MODEL.pt2 SEQ]: with a model of 16 layers such as Llama 3.2 1B, it too.
set -u
autosp=$1 data=$2 model=${4:+$3} seq=${4:-}
bad=0

layer() {  # op that begins a layer; text of a dump -> "op count" sorted, of the ops between its first two
    sed -n 's/^ *%[^=]* = \([a-z_0-9]*\)(.*/\1/p' | awk -v from="$1" '$1 == from { n++ } n == 1 && $1 != from { c[$1]++ }
        END { for (op in c) if (op !~ /^(dot|reshape|reshard|param|full)$/) print op, c[op] }' | sort | tr '\n' ' '
}

expect() {  # what, got, wanted
    [ "$2" = "$3" ] && return
    bad=$((bad + 1))
    echo "$1: has '$2', expected '$3'"
}

look() {  # name, file, forward, backward, further options
    name=$1 file=$2 forward=$3 backward=$4
    shift 4
    text=$("$autosp" dump "$file" --after fuse --fuse-rows --no-update --verify-each "$@") || { bad=$((bad + 1)); return; }
    expect "$name, forward" "$(printf '%s\n' "$text" | layer attention)" "$forward"
    expect "$name, backward" "$(printf '%s\n' "$text" | layer attention_grad)" "$backward"
}

for fixture in llama llama_d64 granite mistral_window; do
    for ranks in 1 2 8; do
        look "$fixture on $ranks" "$data/fixtures/$fixture/model.pt2" "fused 5 permute 2 " "fused 5 permute 2 " \
            --ranks "$ranks" --attention gather-kv
    done
done
look qwen3 "$data/fixtures/qwen3/model.pt2" "fused 5 permute 4 " "fused 5 permute 2 "
[ -z "$model" ] || look "$model" "$model" "fused 5 permute 2 " "fused 5 permute 2 " --batch 1 --seq "$seq"
[ $bad = 0 ]
