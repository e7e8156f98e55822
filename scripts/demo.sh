#!/bin/sh
# make demo: the whole way on a small model. Plan, proof, training at context 8,192 on two ranks, until the loss is clearly below
# what counting bytes can reach.
set -eu
cd "$(dirname "$0")/.."
autosp=build/autosp model=examples/demo-llama.pt2 out=out/demo
steps=${DEMO_STEPS:-44}
mkdir -p "$out"

# A real text that Debian packages: the fortune cookies, some 2 MB of English.
texts=/usr/share/games/fortunes
if [ ! -f "$texts/fortunes" ]; then
    echo "autosp: installing with apt-get: fortunes (the text to train on)"
    if [ "$(id -u)" != 0 ]; then
        echo "autosp: not root: run  sudo apt-get install fortunes  and try again" >&2
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends fortunes >/dev/null
fi
find "$texts" -maxdepth 1 -type f ! -name '*.dat' | sort | xargs cat >"$out/text.txt"

echo "== 1. The plan: what one step of $model takes at context 8,192 on 2 ranks"
$autosp plan $model --batch 1 --seq 8192 --ranks 2 --save "$out/decisions.json"
echo
echo "== 2. The proof: the same program and decisions at a length that is quick to compare, 2 ranks against 1"
$autosp check $model --batch 1 --seq 1021 --ranks 2 --steps 2 --decisions "$out/decisions.json"
echo
echo "== 3. Training on $out/text.txt ($(wc -c <"$out/text.txt") bytes of text, one token a byte)"
$autosp train $model --data "$out/text.txt" --batch 1 --seq 8192 --ranks 2 --steps "$steps" --lr 4e-3 --warmup 6 --seed 1 --quiet --out "$out" |
    tee "$out/log.txt"
tail -n 1 "$out/metrics.jsonl" | grep -q '"loss"'

# Clearly below: the mean of the last tenth of the steps against the text's unigram entropy.
awk '/^done after/ { for (i = 1; i <= NF; i++) { if ($i == "->") last = $(i + 1); if ($i == "data") h = $(i + 1) } }
     END { sub(/\)/, "", h)
           if (last == "" || last + 0 > h - 0.3) { print "the loss did not get clearly below the unigram entropy: " last " against " h; exit 1 }
           printf "the loss, %.3f, is clearly below the unigram entropy of the text, %.3f nats per byte\n", last, h }' "$out/log.txt"
echo
echo "outputs in $out: model.safetensors (load it with PyTorch), metrics.jsonl, loss.svg (open it in a browser), decisions.json, log.txt"
