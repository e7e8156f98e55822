#!/bin/sh
# Packed documents through cuDNN's place on the emulated device: with a bound on their number that the user or the data say, from
# the command line to attention's tables. run_packed.sh AUTOSP_EMULATED CACHE FOLDER-OF-packed_documents
set -u
autosp=$1 dir=$3
export AUTOSP_CACHE="$2"
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
bad=0
check() {
    "$autosp" check "$dir/model.pt2" --golden "$dir/b2s64.safetensors" --attention head --device cuda --dtype bf16 "$@" 2>&1
}
fail() { bad=$((bad + 1)); echo "FAILED: $1"; printf '%s\n' "$2" | tail -n 5; }

# The golden's rows hold 6 and 5 documents at most: bounds that hold, on one rank and with heads spread over two.
for p in 1 2; do
    for most in 6 40; do
        out=$(check --ranks $p --max-documents $most) || fail "check with $most documents on $p ranks" "$out"
    done
    # ... and one that does not: never a wrong answer. (It also shows that it is this path that runs.)
    out=$(check --ranks $p --max-documents 3)
    case "$? $out" in
        2*REFUSED*attention*"holds 6 packed documents, at most 4 were planned for"*) ;;
        *) fail "too many documents on $p ranks" "$out" ;;
    esac
done

# Heads in groups, of each entry of the batch by itself: the same bytes.
for p in 1 2; do
    check --ranks $p --max-documents 6 --out "$tmp/all" > "$tmp/log" || fail "check on $p ranks" "$(cat "$tmp/log")"
    check --ranks $p --max-documents 6 --attention-groups 2 --out "$tmp/groups" > "$tmp/log" ||
        fail "check in groups on $p ranks" "$(cat "$tmp/log")"
    cmp "$tmp/all" "$tmp/groups" || fail "other results in groups on $p ranks" ""
    out=$(check --ranks $p --max-documents 3 --attention-groups 2)
    case "$? $out" in
        2*REFUSED*"holds 6 packed documents"*) ;;
        *) fail "too many documents in groups on $p ranks" "$out" ;;
    esac
done

# Rows of 48 tokens with up to 12 documents each, ended by token 5; the program counts tokens below 6.
python3 - "$tmp" <<'P' || exit 1
import random, struct, sys
random.seed(3)
stream = [random.choice([5] + [random.randrange(6, 30)] * 5) for _ in range(48 * 8)]
stream[48:96] = [7] * 3 + [5, 8, 9, 10] * 11 + [7]  # the fullest row: 12
for i in range(0, 48 * 8, 48):
    row = stream[i:i + 48]
    while row.count(5) > 11:
        row[row.index(5)] = 6
    stream[i:i + 48] = row
open(sys.argv[1] + "/packed.u16", "wb").write(struct.pack("<%dH" % len(stream), *stream))
other = [3 if i % 3 == 0 else t for i, t in enumerate(stream)]  # another token below 6, which --doc-token does not name
open(sys.argv[1] + "/other.u16", "wb").write(struct.pack("<%dH" % len(other), *other))
P
train() {
    name=$1 data=$2
    shift 2
    "$autosp" train "$dir/model.pt2" --data "$tmp/$data.u16" --seq 48 --batch 2 --steps 4 --seed 5 --device cuda --dtype bf16 \
        --random-init --no-save --quiet --out "$tmp/$name" "$@" 2>&1
}
out=$(train said packed --doc-token 5) || fail "train" "$out"
case "$out" in *"data: at most 12 documents in a row"*"done after 4 steps"*) ;; *) fail "train counts documents" "$out" ;; esac
out=$(train own packed --doc-token 5 --max-documents 0) || fail "train by our own kernel" "$out"
case "$out" in *"documents in a row"*) fail "documents are not counted where the user said 0" "$out" ;; esac
python3 - "$tmp" <<'P' || fail "losses of both kernels" ""
import json, sys
a, b = ([json.loads(l)["loss"] for l in open(f"{sys.argv[1]}/{n}/metrics.jsonl")] for n in ("said", "own"))
print("losses:", a, b)
sys.exit(not (len(a) == len(b) == 4 and all(abs(x - y) <= 5e-3 * abs(y) for x, y in zip(a, b))))
P
out=$(train other other --doc-token 5)
case "$? $out" in
    2*"packed documents, at most 16 were planned for: give --max-documents N"*) ;;
    *) fail "documents that --doc-token does not count" "$out" ;;
esac
out=$(train large other --doc-token 5 --max-documents 40) || fail "the user's bound" "$out"
out=$(train none other) || fail "no bound" "$out"
[ $bad -eq 0 ] && echo "packed documents on the emulated device: all as expected"
