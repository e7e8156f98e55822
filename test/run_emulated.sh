#!/bin/sh
# autosp check on the emulated device over one golden of a program: run_emulated.sh AUTOSP_EMULATED CACHE FOLDER "RANKS..." "DTYPES..." [OPTION...]
# Limits are those of check. CACHE: folder of compiled kernels, which all programs share.
set -u
autosp=$1 dir=$3 ranks=$4 dtypes=$5
export AUTOSP_CACHE="$2"
golden=$(ls -S "$dir"/b*.safetensors | head -n 1)  # the largest: few tokens do not average bf16's rounding away
[ -f "$dir/b2s64.safetensors" ] && golden=$dir/b2s64.safetensors
shift 5
bad=0 n=0
for t in $dtypes; do
    for p in $ranks; do
        n=$((n + 1))
        out=$("$autosp" check "$dir/model.pt2" --golden "$golden" --ranks "$p" --device cuda --dtype "$t" "$@" 2>&1)
        rc=$?
        last=$(printf '%s\n' "$out" | tail -n 1)
        case "$rc $last" in
            "0 check: PASS ranks=$p "*) ;;
            *)
                bad=$((bad + 1))
                echo "FAILED ($rc): AUTOSP_CACHE=$AUTOSP_CACHE $autosp check $dir/model.pt2 --golden $golden --ranks $p --device cuda --dtype $t $*"
                printf '%s\n' "$out" | tail -n 5
                ;;
        esac
    done
done
echo "$n checks on the emulated device, $bad failed"
[ "$n" -gt 0 ] && [ "$bad" -eq 0 ]
