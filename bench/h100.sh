#!/bin/bash
# Everything that a GPU has to show, in one go, with the table last. Two steps, because the GPU's machine may have no compiler libraries:
#   bench/h100.sh build            here: an executable with static libraries, and the GPU tests, in build-gpu/
#   bench/h100.sh run [PART...]    on the GPU's machine: checks and times. Parts: units right bf16 speed peer memory start sanitize quality
# Files go to $OUT (default out/h100).
set -u
cd "$(dirname "$0")/.."
B=build-gpu
if [ "${1:-}" = build ]; then
    set -e
    cmake -S . -B $B -G Ninja -DCMAKE_BUILD_TYPE=Release -DAUTOSP_STATIC=ON -DAUTOSP_CUDA=ON -DAUTOSP_TESTS=OFF -DAUTOSP_GPU_TESTS=ON >$B.log || { cat $B.log; exit 1; }
    cmake --build $B --target autosp $(cd test/gpu && ls gpu_*.c | sed 's/\.c$//')
    rm -rf $B/carry && mkdir -p $B/carry
    cp $B/autosp $(find $B -maxdepth 3 -type f -name 'gpu_*' -perm -u+x) $B/carry/
    strip $B/carry/*
    tar -C $B/carry -cJf $B/carry.tar.xz .
    rm -rf $B/carry
    ls -l $B/carry.tar.xz
    exit 0
fi
[ "${1:-}" = run ] || { sed -n 2,6p "$0"; exit 3; }
shift
parts=${*:-units right bf16 speed peer memory start quality sanitize}
OUT=${OUT:-out/h100}
mkdir -p "$OUT" $B/bin
[ -f $B/carry.tar.xz ] && tar -C $B/bin -xJf $B/carry.tar.xz
A=$B/bin/autosp
PY=$(command -v python3)
DNN=$($PY -c 'import nvidia.cudnn, os; print(os.path.join(list(nvidia.cudnn.__path__)[0], "lib"))' 2>/dev/null)
export LD_LIBRARY_PATH=$DNN:${LD_LIBRARY_PATH:-} AUTOSP_CACHE=${AUTOSP_CACHE:-/tmp/autosp-cache} PYTHONUNBUFFERED=1
xz -dkf bench/llama-3.2-1b.pt2.xz
M=bench/llama-3.2-1b.pt2
[ -f /tmp/tokens.bin ] || head -c 4000000 /dev/urandom >/tmp/tokens.bin
rows=""
row() { rows="$rows$1
"; }
note() { echo "== $*"; }

train_1b() {  # S, steps, further options: the last lines of a training run
    $A train $M --data /tmp/tokens.bin --random-init --batch 1 --seq "$1" --steps "$2" --device cuda --dtype bf16 --out /tmp/out1b --no-save --quiet "${@:3}" 2>&1
}
rate() { sed -n 's/.* \([0-9]*\) tokens\/s.*/\1/p' | sort -n | tail -1; }

for part in $parts; do
    case $part in
    units)
        for t in $(cd $B/bin && ls gpu_*); do
            note "$t"
            timeout 150 $B/bin/$t >"$OUT/$t.log" 2>&1
            rc=$?
            tail -n 25 "$OUT/$t.log"
            row "unit $t: $([ $rc = 0 ] && echo pass || echo "FAIL ($rc)")"
        done ;;
    right)
        note "fixtures in float32"
        pass=0; all=0
        for f in test/data/fixtures/*/; do
            for b in b2s64 b3s96 b2s101; do
                for p in 1 2 4; do
                    all=$((all + 1))
                    r=$($A check $f/model.pt2 --golden $f/$b.safetensors --ranks $p --device cuda 2>&1 | tail -1)
                    case $r in *PASS*) pass=$((pass + 1)) ;; *) echo "$(basename $f) $b P=$p: $r" ;; esac
                done
            done
        done >"$OUT/right.log" 2>&1
        cat "$OUT/right.log" | head -40
        row "fixtures float32, P = 1, 2, 4: $pass of $all PASS" ;;
    bf16)
        note "fixtures in bf16, and PyTorch's autocast on the same programs"
        $PY bench/torch_bf16.py test/data/fixtures >"$OUT/torch_bf16.log" 2>&1 &
        for f in test/data/fixtures/*/; do
            for p in 1 2; do
                echo "$(basename $f) P=$p $($A check $f/model.pt2 --golden $f/b2s101.safetensors --ranks $p --device cuda --dtype bf16 2>&1 | tail -1)"
            done
        done | tee "$OUT/bf16.log"
        wait
        cat "$OUT/torch_bf16.log"
        row "fixtures bf16: $(grep -c 'check: PASS' "$OUT/bf16.log") of $(wc -l <"$OUT/bf16.log") PASS" ;;
    speed)
        for s in 8192 16384 32768; do
            note "Llama-3.2-1B, S = $s"
            train_1b $s 6 --profile | tee "$OUT/speed_$s.log" | tail -n 45
            row "1B, S = $s: $(rate <"$OUT/speed_$s.log") tokens/s"
        done
        [ -x $B/bin/gpu_ceiling ] && $B/bin/gpu_ceiling 32768 | tee "$OUT/ceiling.log" ;;
    peer)
        note "PyTorch, strong"
        timeout 300 $PY bench/peer_torch.py strong 32768 2>&1 | grep peer | tee "$OUT/peer.log"
        row "$(cat "$OUT/peer.log")" ;;
    memory)
        note "memory at 32768"
        train_1b 32768 60 >/dev/null &
        pid=$!
        most=0
        for i in $(seq 60); do
            u=$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | head -1)
            [ "$u" -gt $most ] && most=$u
            sleep 0.5
            kill -0 $pid 2>/dev/null || break
        done
        kill $pid 2>/dev/null
        planned=$($A plan $M --batch 1 --seq 32768 --device cuda --dtype bf16 --json | sed -n 's/.*"peak_nbytes": \([0-9]*\).*/\1/p' | head -1)
        row "memory at 32768: planned arena $planned B, nvidia-smi $most MiB" ;;
    start)
        note "first and second start"
        for n in first second; do
            [ $n = first ] && rm -rf /tmp/cold
            t0=$(date +%s.%N)
            AUTOSP_CACHE=/tmp/cold train_1b 32768 1 >"$OUT/start_$n.log" 2>&1
            t1=$(date +%s.%N)
            row "$n start to the end of step 1 at 32768: $(echo "$t1 $t0" | awk '{printf "%.1f s", $1 - $2}') ($(grep -o 'ready in [0-9.]* s' "$OUT/start_$n.log"))"
        done ;;
    quality)
        note "the demo's model and text in bf16"
        text=$(ls /tmp/demo.txt out/demo/text.txt 2>/dev/null | head -1)
        [ -n "$text" ] && $A train examples/demo-llama.pt2 --data $text --batch 2 --seq 1024 --steps 300 --device cuda --dtype bf16 --out /tmp/quality --quiet | tail -2 ;;
    sanitize)
        note "compute-sanitizer"
        for tool in memcheck racecheck initcheck; do
            for f in llama llama_packed mixtral short_conv; do
                compute-sanitizer --tool $tool --error-exitcode 9 $A check test/data/fixtures/$f/model.pt2 --golden test/data/fixtures/$f/b2s64.safetensors --device cuda --no-graph >"$OUT/sanitize_${tool}_$f.log" 2>&1
                rc=$?
                row "compute-sanitizer $tool $f: $([ $rc = 0 ] && echo clean || tail -1 "$OUT/sanitize_${tool}_$f.log")"
            done
        done ;;
    esac
done
echo
echo "== table ($(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1), $(date +%F))"
printf '%s' "$rows"
