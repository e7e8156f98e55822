#!/bin/sh
# autosp plan as people use it: the longest context for several numbers of ranks, one length explained, the page, and what is said where nothing
# fits; and every fixture at the least budget that a refusal names, bit for bit as without a budget.  plan.sh AUTOSP DATA
a=$1 data=$2 bad=0 t=/tmp/plan.$$
trap 'rm -f $t*' EXIT
fail() { echo "FAILED: $*"; bad=1; }
m=$data/fixtures/llama/model.pt2

"$a" plan "$m" --device h100 --dtype bf16 --batch 1 --max-seq --ranks 1,2,4 --budget 60MB >$t.max 2>&1 || fail "--max-seq: $(cat $t.max)"
for p in 1 2 4; do
    s=$(sed -n "s/^ *$p  *\([0-9,]*\) .*/\1/p" $t.max | tr -d ,)
    [ "${s:-0}" -gt 100 ] || { fail "--max-seq has no row of $p ranks: $(cat $t.max)"; continue; }
    "$a" plan "$m" --device h100 --dtype bf16 --batch 1 --ranks $p --seq "$s" --budget 60MB >$t.one 2>&1 || fail "the longest context of $p ranks, $s, has no plan: $(cat $t.one)"
    for want in 'memory decisions' 'alive at the peak' 'what the backward needs' 'time of the step'; do grep -q "$want" $t.one || fail "--seq does not say: $want"; done
    "$a" plan "$m" --device h100 --dtype bf16 --batch 1 --ranks $p --seq $((s * 3 / 2)) --budget 60MB >$t.more 2>&1 && fail "$p ranks: half as much again fits too"
    grep -q 'would do); each rank would need less with .*(.*fits), .*(.*)' $t.more || fail "no changes that help: $(cat $t.more)"
done

"$a" plan "$m" --device h100 --dtype bf16 --batch 1 --ranks 2 --seq 4096 --budget 60MB --html $t.html >/dev/null 2>&1 || fail "--html"
for want in '<!doctype html>' 'Device memory over the step' 'The step by stream' 'What the backward needs' 'Alive at the peak' '</html>'; do
    grep -q "$want" $t.html || fail "the page has no $want"
done
grep -qiE 'https?:|<script|[^a-z](nan|inf)[^a-z]' $t.html && fail "the page loads something, or has no numbers"
[ "$(grep -c '<svg' $t.html)" = "$(grep -c '</svg>' $t.html)" ] || fail "a drawing is not closed"
"$a" plan "$m" --html /nowhere/x.html >/dev/null 2>$t.err && fail "--html into no folder"
grep -q 'cannot write the page' $t.err || fail "--html into no folder says: $(cat $t.err)"

# On the CPU a budget changes no bit: the same errors to the last digit.
for d in "$data"/fixtures/*/; do
    p=2 g=$d/b2s64.safetensors
    least=$("$a" check "$d/model.pt2" --golden "$g" --ranks $p --threads 1 --budget 1kB 2>&1 | sed -n 's/.*--budget \([0-9]*\) would do.*/\1/p')
    [ -n "$least" ] || { fail "$d: no least budget is named"; continue; }
    for b in 1TB "$least"; do "$a" check "$d/model.pt2" --golden "$g" --ranks $p --threads 1 --budget "$b" --tile off 2>&1 | grep check: >$t.$b; done
    grep -q 'check: PASS' "$t.$least" || fail "$d at $least bytes: $(cat "$t.$least")"
    cmp -s $t.1TB "$t.$least" || fail "$d: a budget changes values: $(cat $t.1TB "$t.$least")"
done
exit $bad
