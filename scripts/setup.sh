#!/bin/sh
# Installs what building and testing need, with apt-get, saying so first. Does nothing when everything is there.
set -eu
need=""
have() { dpkg-query -W -f='${Status}' "$1" 2>/dev/null | grep -q "ok installed"; }
for p in gcc g++ libc6-dev cmake ninja-build pkg-config libjansson-dev zlib1g-dev libopenblas-dev libcmocka-dev python3; do
    have "$p" || need="$need $p"
done
if command -v gcc >/dev/null && command -v g++ >/dev/null && command -v cmake >/dev/null && command -v ninja >/dev/null && command -v python3 >/dev/null &&
    pkg-config --exists jansson zlib openblas cmocka 2>/dev/null; then
    need=""  # all there, whoever installed it
fi
[ -z "$need" ] && exit 0
echo "autosp: installing with apt-get:$need"
if [ "$(id -u)" != 0 ]; then
    echo "autosp: not root: run  sudo apt-get install$need  and try again" >&2
    exit 1
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $need >/dev/null
