#!/bin/sh
# An index that is out of range, found by a kernel on one of several ranks: the run is refused with the node that read it, and with no
# other (the ranks learn of it in their next exchange). device_errors.sh AUTOSP_EMULATED CACHE FOLDER-WITH-GOLDENS
set -u
autosp=$1 dir=$3
export AUTOSP_CACHE="$2"
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
python3 - "$dir/b2s64.safetensors" "$tmp/bad.safetensors" <<'P' || exit 1
import json, struct, sys
data = bytearray(open(sys.argv[1], "rb").read())
n = struct.unpack("<Q", data[:8])[0]
at = 8 + n + json.loads(data[8:8 + n])["input_ids"]["data_offsets"][0]
data[at + 80:at + 88] = struct.pack("<q", 1 << 33)
open(sys.argv[2], "wb").write(data)
P
out=$("$autosp" check "$dir/model.pt2" --golden "$tmp/bad.safetensors" --ranks 2 --device cuda 2>&1)
rc=$?
case "$rc $out" in
    2*reshard*) ;;
    2*embedding*"index 8589934592 is outside"*) exit 0 ;;
esac
echo "$rc: $out"
exit 1
