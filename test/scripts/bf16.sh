#!/bin/sh
# Every program of the tests in mixed precision: through all passes, verified after each, as a device gets it; the CPU refuses the plan.
set -u
autosp=$1 data=$2
bad=0
for model in "$data"/fixtures/*/model.pt2 "$data"/programs/*/model.pt2; do
    for ranks in 1 2 3; do
        $autosp dump "$model" --dtype bf16 --verify-each --after schedule --ranks $ranks > /tmp/bf16.$$ 2> /tmp/bf16.err.$$ && continue
        echo "$model, $ranks ranks: $(head -c 500 /tmp/bf16.err.$$)"
        bad=1
    done
done
llama=$data/fixtures/llama/model.pt2
$autosp dump "$llama" --dtype bf16 --after schedule > /tmp/bf16.$$ || bad=1
$autosp dump --parse /tmp/bf16.$$ > /tmp/bf16.again.$$ && cmp /tmp/bf16.$$ /tmp/bf16.again.$$ || { echo "a dump in bf16 is not read back as it was"; bad=1; }
grep -q 'half=1' /tmp/bf16.$$ || { echo "llama: no copy of a parameter"; bad=1; }
# f32 values of activations' size that are neither parameters nor their gradients: none is left
grep ': f32\[2,64,[0-9]*[0-9][0-9]\]' /tmp/bf16.$$ | grep -v 'dtype=f32} : f32\[2,64,16\]\|reshape' && { echo "llama: activations stored in f32"; bad=1; }
$autosp plan "$llama" --seq 64 --dtype bf16 > /tmp/bf16.$$ 2>&1 && { echo "the CPU planned bf16"; bad=1; }
grep -q 'needs --device cuda' /tmp/bf16.$$ || { echo "the refusal does not say what to do: $(cat /tmp/bf16.$$)"; bad=1; }
rm -f /tmp/bf16.$$ /tmp/bf16.err.$$ /tmp/bf16.again.$$
[ $bad = 0 ]
