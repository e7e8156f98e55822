#!/bin/sh
# autosp check over every golden of one program: run_checks.sh AUTOSP FOLDER "RANKS..." "STRATEGIES..." [OPTION...]
# Programs without attention have no strategy to force; forcing then changes nothing and must still pass. One rank has none either: it
# runs once.
set -u
autosp=$1 dir=$2 ranks=$3 strategies=$4
shift 4
bad=0 n=0
for golden in "$dir"/b*.safetensors; do
    for p in $ranks; do
        for s in $strategies; do
            [ "$p" = 1 ] && [ "$s" != "${strategies%% *}" ] && continue
            n=$((n + 1))
            out=$("$autosp" check "$dir/model.pt2" --golden "$golden" --ranks "$p" --attention "$s" --threads 1 "$@" 2>&1)
            rc=$?
            last=$(printf '%s\n' "$out" | tail -n 1)
            case "$rc $last" in
                "0 check: PASS ranks=$p "*) ;;
                *)
                    bad=$((bad + 1))
                    echo "FAILED ($rc): check $dir/model.pt2 --golden $golden --ranks $p --attention $s $*"
                    printf '%s\n' "$out" | tail -n 5
                    ;;
            esac
        done
    done
done
echo "$n checks, $bad failed"
[ "$n" -gt 0 ] && [ "$bad" -eq 0 ]
