#!/bin/sh
# Attention's heads in groups: run_groups.sh AUTOSP AUTOSP_EMULATED CACHE DATA. Checks pass, results are the same bytes as without groups, and
# the graph says how many groups there are.
set -u
autosp=$1 emulated=$2 data=$4
export AUTOSP_CACHE="$3"
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
bad=0
fail() { bad=1; echo "FAILED: $*"; }

run() {  # command, out, arguments
    command=$1 out=$2
    shift 2
    "$command" check "$@" --out "$out" > "$tmp/log" 2>&1 && tail -n 1 "$tmp/log" | grep -q '^check: PASS ' ||
        fail "$command check $*: $(tail -n 3 "$tmp/log")"
}


for p in fixtures/gpt2 fixtures/llama fixtures/mqa fixtures/mixtral fixtures/doc_mask fixtures/heads6 programs/alibi; do
    golden=$(ls -S "$data/$p"/b*.safetensors | head -n 1)
    for ranks in 1 2; do
        for how in "$autosp --threads 1" "$emulated --device cuda --dtype fp32" "$emulated --device cuda --dtype bf16"; do
            command=${how%% *} options=${how#* }
            args="$data/$p/model.pt2 --golden $golden --ranks $ranks $options"
            # shellcheck disable=SC2086
            run "$command" "$tmp/all" $args
            # shellcheck disable=SC2086
            run "$command" "$tmp/groups" $args --attention-groups 2
            cmp -s "$tmp/all" "$tmp/groups" || fail "$args: other results with --attention-groups 2"
        done
    done
done

groups() {  # program, N: what the graph's attention nodes say, each once
    "$autosp" dump "$data/fixtures/$1/model.pt2" --after groups --attention-groups "$2" 2> "$tmp/log" | grep ' = attention' |
        sed 's/.*groups=\([0-9]*\).*/\1/; t; s/.*/none/' | sort -u | tr '\n' ' '
}
is() { got=$(groups "$1" "$2"); [ "$got" = "$3 " ] || fail "$1 with --attention-groups $2: groups $got, not $3"; }
is mqa 2 none
is gpt2 1 none
is gpt2 2 2
is heads6 4 3
is llama 100 2
"$autosp" dump "$data/fixtures/gpt2/model.pt2" --attention-groups 0 > "$tmp/log" 2>&1 && fail "--attention-groups 0 was taken"
grep -q 'must be between 1' "$tmp/log" || fail "--attention-groups 0: $(cat "$tmp/log")"
[ $bad = 0 ]
