#!/bin/sh
# Programs that must be refused: exit 2, and the verdict holds every line of the folder's expect.txt (node, source line, reason).
# refused.sh AUTOSP DATA
set -u
autosp=$1 data=$2
n=0 bad=0
for dir in "$data"/programs/refused/*/; do
    n=$((n + 1))
    for p in 1 2; do
        out=$("$autosp" check "$dir/model.pt2" --seq 24 --ranks $p 2>&1)
        rc=$?
        wrong=""
        [ "$rc" -eq 2 ] || wrong="exit $rc"
        case "$out" in *"check: REFUSED: "*" at "*".py:"*) ;; *) wrong="$wrong; no node with its source line" ;; esac
        while IFS= read -r line; do
            case "$out" in *"$line"*) ;; *) wrong="$wrong; not said: $line" ;; esac
        done <"$dir/expect.txt"
        [ -z "$wrong" ] && continue
        bad=$((bad + 1))
        printf 'FAILED: %s on %s ranks: %s\n%s\n' "$dir" "$p" "$wrong" "$out"
    done
done
echo "$n programs, $bad failed"
[ "$n" -gt 0 ] && [ "$bad" -eq 0 ]
