#!/bin/sh
# Lengths that do not divide: a few positions on eight ranks (some idle), batches of one and three, both strategies; and a length outside
# the archive's range is refused. lengths.sh AUTOSP DATA
set -u
autosp=$1 data=$2
n=0 bad=0

check() {  # fixture, length, batch, ranks, strategy
    n=$((n + 1))
    out=$("$autosp" check "$data/fixtures/$1/model.pt2" --seq "$2" --batch "$3" --ranks "$4" --attention "$5" --steps 2 --threads 1 2>&1)
    rc=$?
    case "$rc $(printf '%s\n' "$out" | tail -n 1)" in
        "0 check: PASS ranks=$4 seq=$2 "*) ;;
        *)
            bad=$((bad + 1))
            printf 'FAILED (%s): %s --seq %s --batch %s --ranks %s --attention %s\n%s\n' "$rc" "$1" "$2" "$3" "$4" "$5" "$out"
            ;;
    esac
}

for dir in "$data"/fixtures/*/; do
    name=$(basename "$dir")
    check "$name" 3 1 8 auto
    check "$name" 4 3 8 auto
    check "$name" 5 1 8 auto
    check "$name" 6 3 8 auto
    check "$name" 7 1 8 auto
    check "$name" 61 1 7 auto
done
for s in 3 4 5 6 7; do
    check llama $s 1 8 gather-kv
    check mqa $s 3 8 head
    check heads6 $s 1 8 head
    check mistral_window $s 1 8 gather-kv
done
n=$((n + 1))
out=$("$autosp" check "$data/fixtures/llama/model.pt2" --seq 1 --ranks 2 2>&1)
case "$? $out" in
    "2 "*REFUSED*range*) ;;
    *)
        bad=$((bad + 1))
        echo "FAILED: --seq 1 is not refused: $out"
        ;;
esac
echo "$n checks, $bad failed"
[ "$bad" -eq 0 ]
