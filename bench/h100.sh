#!/bin/bash
# Everything that a GPU has to show, with the table last. Two steps, because the GPU's machine may have no compiler libraries:
#   bench/h100.sh build            here: an executable with static libraries, and the GPU tests, in build-gpu/
#   bench/h100.sh run [PART...]    on the GPU's machine: checks and times. Each part is done in ten minutes. Parts:
#     units long rates calibrate right bf16 speed peer memory start quality sanitize, and by name only: context half million budgets
# Files go to $OUT (default out/h100), rows of the table to $OUT/rows.txt too.
set -u
cd "$(dirname "$0")/.." || exit 1
B=build-gpu
PART_SECONDS=570   # a part stops starting things then
if [ "${1:-}" = build ]; then
    set -e
    cmake -S . -B $B -G Ninja -DCMAKE_BUILD_TYPE=Release -DAUTOSP_STATIC=ON -DAUTOSP_CUDA=ON -DAUTOSP_TESTS=OFF -DAUTOSP_GPU_TESTS=ON >$B.log ||
        { cat $B.log; exit 1; }
    tests=()
    for f in $(grep -l '^int main' test/gpu/gpu_*.c); do tests+=("$(basename "$f" .c)"); done
    cmake --build $B --target autosp "${tests[@]}"
    rm -rf $B/carry
    mkdir -p $B/carry
    cp $B/autosp $B/carry/
    for t in "${tests[@]}"; do cp "$B/test/gpu/$t" $B/carry/; done
    strip $B/carry/*
    tar -C $B/carry -cJf $B/carry.tar.xz .
    rm -rf $B/carry
    ls -l $B/carry.tar.xz
    exit 0
fi
[ "${1:-}" = run ] || { sed -n 2,7p "$0"; exit 3; }
shift
parts=("$@")
[ $# = 0 ] && parts=(units long rates calibrate right bf16 speed peer memory start quality sanitize)
OUT=${OUT:-out/h100}
mkdir -p "$OUT" $B/bin
[ -f $B/carry.tar.xz ] && tar -C $B/bin -xJf $B/carry.tar.xz
A=$PWD/$B/bin/autosp
PY=$(command -v python3)
DNN=$($PY -c 'import nvidia.cudnn, os; print(os.path.join(list(nvidia.cudnn.__path__)[0], "lib"))' 2>/dev/null)
export LD_LIBRARY_PATH=$DNN:${LD_LIBRARY_PATH:-} AUTOSP_CACHE=${AUTOSP_CACHE:-/tmp/autosp-cache} PYTHONUNBUFFERED=1 OUT A
[ -f bench/llama-3.2-1b.pt2 ] || xz -dk bench/llama-3.2-1b.pt2.xz
M=bench/llama-3.2-1b.pt2
[ -f /tmp/tokens.bin ] || head -c 4000000 /dev/urandom >/tmp/tokens.bin
F=test/data/fixtures
: >"$OUT/rows.txt"
row() { echo "$1" >>"$OUT/rows.txt"; }
note() { echo "== $*"; }
begin=$SECONDS
left() { echo $((PART_SECONDS - (SECONDS - begin))); }

# limited SECONDS COMMAND...: at most so long, and no longer than the part has left.
limited() {
    local most=$1 have
    shift
    have=$(left)
    [ "$have" -lt "$most" ] && most=$have
    [ "$most" -lt 5 ] && return 125
    timeout "$most" "$@"
}

# probe NAME SECONDS ARGUMENTS...: one GPU test, a row with its verdict and time.
probe() {
    local name=$1 most=$2 t0=$SECONDS rc word log
    shift 2
    log="$OUT/${name}${1:+_}${1:-}.log"
    note "$name $*"
    limited "$most" "$B/bin/$name" "$@" >"$log" 2>&1
    rc=$?
    grep -a FAIL "$log" | head -20
    tail -n 12 "$log"
    case $rc in 0) word=pass ;; 124) word="FAIL: not done after $most s" ;; 125) word="not run: the part's time is up" ;; *) word="FAIL ($rc)" ;; esac
    row "$name $*: $word, $((SECONDS - t0)) s"
}

# Fixtures, several at a time: a line "FIXTURE BINDING P=RANKS [OPTIONS] VERDICT" for each line of options that comes in.
check_fixture() {  # fixture binding ranks options...
    local f=$1 b=$2 p=$3
    shift 3
    echo "$f $b P=$p $* $(timeout 120 "$A" check "test/data/fixtures/$f/model.pt2" --golden "test/data/fixtures/$f/$b.safetensors" --ranks "$p" \
        --device cuda "$@" 2>&1 | tail -1)"
}
export -f check_fixture
check_fixtures() { sed 's/ *$//' | limited "$PART_SECONDS" xargs -P 6 -L 1 bash -c 'check_fixture "$@"' check | sort; }
fixtures() { for f in "$F"/*/; do basename "$f"; done; }
passed() { echo "$(grep -c 'check: PASS' "$1") of $2 PASS"; }

train_1b() {  # S, steps, further options
    "$A" train $M --data /tmp/tokens.bin --random-init --batch 1 --seq "$1" --steps "$2" --device cuda --dtype bf16 --out "/tmp/out1b_$1" --no-save \
        --quiet "${@:3}" 2>&1
}
rate() { sed -n 's/.* \([0-9]*\) tokens\/s.*/\1/p' "$1" | sort -n | tail -1; }
ceiling() { sed -n "s/^ceiling: \([0-9]*\) tokens\/s at $1\$/\1/p" "$OUT/ceiling.log" 2>/dev/null; }
ratio() { awk -v a="${1:-0}" -v b="${2:-0}" 'BEGIN { if (a > 0 && b > 0) printf "%.3f", a / b; else printf "unknown" }'; }
# Of the profiled step: what no kernel fills.
idle() {
    awk '/^ *all / { for (i = 1; i <= NF; i++) if ($i == "ms" && !k) k = $(i - 1) } /a step without marks takes/ { s = $(NF - 1) }
         END { if (k > 0 && s > 0) printf "%.1f %%", (k < s ? 100 * (1 - k / s) : 0); else printf "unknown" }' "$1"
}
speed_at() {
    local log="$OUT/speed_$1.log"
    [ -f "$log" ] || train_1b "$1" 7 --profile >"$log"
}

part_units() {
    probe gpu_attention 150 check
    probe gpu_attention 90 packed
    probe gpu_flash 90
    probe gpu_gemm 100 check big long
    probe gpu_fused 120 random 0 200
    probe gpu_fused 60 large
    probe gpu_head 60 head expert
    probe gpu_ops 120 samples
    probe gpu_ops 90 large
    probe gpu_offload 120 programs
}

part_long() {
    probe gpu_attention 150 groups
    probe gpu_attention 330 million
}

part_rates() {
    probe gpu_gemm 120 speed
    probe gpu_flash 120 speed
    probe gpu_attention 150 speed
    probe gpu_attention 90 packed-speed
    probe gpu_ops 60 speed
    probe gpu_offload 60 copies 8
    probe gpu_fused 60 bench
    probe gpu_head 60 speed
}

# A device model of this card, and what it predicts for the steps that `speed` measures.
# Long contexts (docs/performance.md): each beside its ceiling, PyTorch's recipe, and what was planned. `context` in ten minutes; `half` and
# `million` (a program of four layers, exported here) are parts of their own.
tail_of() { grep -E "decisions|the backward needs|token-wise|step [0-9]|^  all |copies|device memory|host memory for" "$1" | cut -c1-170; }
planned() { sed -n 's/.*device memory: planned \([0-9.]*\).*in use \([0-9.]*\) GB/planned \1 GB, in use \2/p' "$1"; }
context_at() {  # S, name, options...
    local log="$OUT/context_$1_$2.log" s=$1 name=$2
    shift 2
    train_1b "$s" 3 --profile "$@" >"$log"
    tail_of "$log"
    row "1B, S = $s ($name): $(rate "$log") tokens/s, $(ratio "$(rate "$log")" "$(ceiling "$s")") of the ceiling, $(planned "$log")"
}
part_context() {
    limited 200 $B/bin/gpu_ceiling 131072 262144 >"$OUT/ceiling.log" 2>&1
    context_at 131072 auto
    context_at 262144 auto
    limited 200 "$PY" bench/peer_torch.py strong 131072 262144 >"$OUT/peer_context.log" 2>&1
    grep peer "$OUT/peer_context.log" | tee -a "$OUT/rows.txt"
    context_at 131072 in_less --budget 38.5GiB
}
part_half() {
    limited 100 $B/bin/gpu_ceiling 524288 >"$OUT/ceiling.log" 2>&1
    train_1b 524288 2 --profile >"$OUT/context_524288.log"
    tail_of "$OUT/context_524288.log"
    row "1B, S = 524288: $(rate "$OUT/context_524288.log") tokens/s, $(ratio "$(rate "$OUT/context_524288.log")" "$(ceiling 524288)") of the ceiling, $(planned "$OUT/context_524288.log")"
}
four_layers() {  # S, name, options...
    local log="$OUT/four_$1_$2.log" s=$1 name=$2
    shift 2
    "$A" train /tmp/four.pt2 --data /tmp/tokens.bin --random-init --batch 1 --seq "$s" --steps 1 --device cuda --dtype bf16 --out /tmp/out4 --no-save "$@" \
        >"$log" 2>&1
    tail_of "$log"
    row "its shape with four layers, S = $s ($name): $(rate "$log") tokens/s, predicted $(sed -n 's/.*slowest: .* predicted, \([0-9]*\) tokens.*/\1/p' "$log"), $(planned "$log")"
}
part_million() {
    "$PY" -c 'import transformers as T
T.LlamaConfig(vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=4, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
              max_position_embeddings=1 << 21, rope_theta=500000.0, tie_word_embeddings=True, architectures=["LlamaForCausalLM"]).save_pretrained("/tmp/four")'
    PYTHONPATH=python limited 100 "$PY" -m autosp.export /tmp/four/config.json --meta --dtype bf16 -o /tmp/four.pt2 || return
    four_layers 1048576 auto
    four_layers 425984 layer --remat layer
    four_layers 425984 auto
    for m in "layer --remat layer --whole-logits" "auto"; do
        # shellcheck disable=SC2086
        context_at 79872 $m
    done
}
# Every fixture at the least budget that is named for it.
part_budgets() {
    local f g p least out n=0 bad=0
    for f in $(fixtures); do
        for p in 1 2 4; do
            g=$F/$f/b2s64.safetensors
            least=$("$A" check "$F/$f/model.pt2" --golden "$g" --ranks $p --device cuda --dtype fp32 --budget 1kB 2>&1 | sed -n 's/.*--budget \([0-9]*\) would do.*/\1/p')
            out=$(timeout 60 "$A" check "$F/$f/model.pt2" --golden "$g" --ranks $p --device cuda --dtype fp32 --budget "$least" 2>&1 | tail -1)
            n=$((n + 1))
            case $out in *"check: PASS"*) ;; *) bad=$((bad + 1)); echo "$f P=$p budget $least: $out" ;; esac
        done
    done
    row "fixtures at their least budgets, P = 1, 2, 4: $((n - bad)) of $n PASS"
}

part_calibrate() {
    local t0=$SECONDS s
    note "calibrate"
    limited 300 "$A" calibrate --device cuda --name h100-here -o "$OUT/device.json" >"$OUT/calibrate.log" 2>&1 || { tail -5 "$OUT/calibrate.log"; return; }
    row "calibrate: $((SECONDS - t0)) s"
    for s in 8192 16384 32768; do
        for m in "--device h100" "--device cuda --device-model $OUT/device.json"; do
            # shellcheck disable=SC2086
            row "predicted at $s, $m: $("$A" plan $M --batch 1 --seq $s --dtype bf16 $m 2>/dev/null | awk '/predicted s/ { getline; print $3 }') s"
        done
    done
}

part_right() {
    note "fixtures in float32"
    for f in $(fixtures); do
        for b in b2s64 b3s96 b2s101; do
            for p in 1 2 4; do echo "$f $b $p"; done
        done
        echo "$f b2s64 2 --processes"
        for p in 1 4; do echo "$f b2s101 $p --poison --no-graph"; done
    done >"$OUT/right.todo"
    check_fixtures <"$OUT/right.todo" >"$OUT/right.log"
    grep -v 'check: PASS' "$OUT/right.log" | head -40
    local n
    n=$(grep -vc -e " --" "$OUT/right.todo")
    grep -v -e ' --' "$OUT/right.log" >"$OUT/right_threads.log"
    grep -e --processes "$OUT/right.log" >"$OUT/right_processes.log"
    grep -e --poison "$OUT/right.log" >"$OUT/right_poison.log"
    row "fixtures float32, P = 1, 2, 4, three sizes: $(passed "$OUT/right_threads.log" "$n")"
    row "fixtures float32, P = 2 as processes: $(passed "$OUT/right_processes.log" "$(grep -c processes "$OUT/right.todo")")"
    row "fixtures float32, memory begins as NaN: $(passed "$OUT/right_poison.log" "$(grep -c poison "$OUT/right.todo")")"
}

# Largest error of a gradient and error of the loss, ours beside PyTorch's.
compare_bf16() {
    awk 'FNR == NR { if ($2 != "failed:") { loss[$1] = $2; grad[$1] = $3 } next }
         $3 == "P=1" { l = g = ""
             for (i = 4; i <= NF; i++) { if ($i ~ /^loss_relerr=/) l = substr($i, 13); if ($i ~ /^grad_relerr=/) g = substr($i, 13) }
             if (g == "") v = "no errors to compare"
             else if (!($1 in grad)) v = "PyTorch has no figure"
             else v = (g + 0 <= 2 * grad[$1] ? "yes" : "NO") sprintf(" (x %.2f)", g / grad[$1])
             printf "bf16 %s: gradient %s, PyTorch %s: ours <= 2 x PyTorch'"'"'s: %s; loss %s, PyTorch %s\n", $1, g, grad[$1], v, l, loss[$1] }' \
        "$OUT/torch_bf16.log" "$OUT/bf16.log"
}
part_bf16() {
    note "fixtures in bf16, and PyTorch's autocast on the same programs"
    timeout 400 "$PY" bench/torch_bf16.py $F >"$OUT/torch_bf16.log" 2>&1 &
    local torch=$!
    for f in $(fixtures); do
        hold=
        [ "$f" = mixtral ] && hold=--hold-routing
        for p in 1 2 4; do echo "$f b2s101 $p --dtype bf16 $hold"; done
        echo "$f b2s101 2 --dtype bf16 --processes $hold"
    done >"$OUT/bf16.todo"
    check_fixtures <"$OUT/bf16.todo" >"$OUT/bf16.log"
    cat "$OUT/bf16.log"
    wait $torch
    cat "$OUT/torch_bf16.log"
    row "fixtures bf16, P = 1, 2, 4 and 2 processes (mixtral with held routing): $(passed "$OUT/bf16.log" "$(wc -l <"$OUT/bf16.todo")")"
    compare_bf16 >>"$OUT/rows.txt"
}

part_speed() {
    note "what a step takes at the least"
    limited 200 $B/bin/gpu_ceiling 8192 16384 32768 >"$OUT/ceiling.log" 2>&1
    cat "$OUT/ceiling.log"
    for s in 8192 16384 32768; do
        note "Llama-3.2-1B, S = $s"
        speed_at $s
        tail -n 45 "$OUT/speed_$s.log"
        row "1B, S = $s: $(rate "$OUT/speed_$s.log") tokens/s, $(ratio "$(rate "$OUT/speed_$s.log")" "$(ceiling $s)") of the ceiling ($(ceiling $s)), idle $(idle "$OUT/speed_$s.log")"
    done
}

part_peer() {  # ours again unless this call has it: ratios are of one machine
    note "PyTorch, strong"
    speed_at 32768
    limited 400 "$PY" bench/peer_torch.py strong 32768 >"$OUT/peer.log" 2>&1 || tail -3 "$OUT/peer.log"
    local peer
    grep peer "$OUT/peer.log"
    peer=$(sed -n 's/.*tok\/s=\([0-9]*\).*/\1/p' "$OUT/peer.log" | tail -1)
    row "1B, S = 32768: $(rate "$OUT/speed_32768.log") tokens/s, PyTorch's strong recipe ${peer:-no figure}: ratio $(ratio "$(rate "$OUT/speed_32768.log")" "$peer")"
}

part_memory() {
    note "memory at 32768"
    train_1b 32768 60 >"$OUT/memory.log" &
    local pid=$! most=0 u planned
    for _ in $(seq 60); do
        u=$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | head -1)
        [ "$u" -gt "$most" ] && most=$u
        sleep 0.5
        kill -0 $pid 2>/dev/null || break
    done
    pkill -P $pid 2>/dev/null
    kill $pid 2>/dev/null
    wait $pid 2>/dev/null
    planned=$("$A" plan $M --batch 1 --seq 32768 --device cuda --dtype bf16 --json | sed -n 's/.*"peak_nbytes": \([0-9]*\).*/\1/p' | head -1)
    row "memory at 32768: planned arena $planned B, nvidia-smi $most MiB at most"
}

part_start() {
    note "first and second start"
    local n t0 t1
    for n in first second; do
        [ $n = first ] && rm -rf /tmp/cold
        t0=$(date +%s.%N)
        AUTOSP_CACHE=/tmp/cold train_1b 32768 1 >"$OUT/start_$n.log"
        t1=$(date +%s.%N)
        row "$n start to the end of step 1 at 32768: $(echo "$t1 $t0" | awk '{printf "%.1f s", $1 - $2}') ($(grep -o "ready in.*" "$OUT/start_$n.log"))"
    done
}

# The demo's run (scripts/demo.sh) on the CPU in float32 and on the GPU in both types, three seeds: 44 steps at a high rate, so that single
# runs differ by a percent or two either way; then longer on the GPU alone.
part_quality() {
    note "the demo's model and text: GPU beside the CPU in float32"
    local text seed type
    for text in build-gpu/text.txt out/demo/text.txt; do
        [ -f $text ] && break
    done
    [ -f $text ] || { row "demo in bf16: no text (out/demo/text.txt: make demo)"; return; }
    demo() { limited 200 "$A" train examples/demo-llama.pt2 --data $text --batch 1 --seq 8192 --lr 4e-3 --warmup 6 --quiet --no-save --out /tmp/quality "$@" 2>&1 |
        sed -n 's/^done.*-> \([0-9.]*\).*/\1/p'; }
    row "demo, 44 steps, seed 1: CPU float32 $(demo --steps 44 --ranks 2 --seed 1)"
    for seed in 1 2 3; do
        row "demo, 44 steps, seed $seed: GPU fp32 $(demo --steps 44 --seed $seed --device cuda --dtype fp32), bf16 $(demo --steps 44 --seed $seed --device cuda --dtype bf16)"
    done
    row "demo, 400 steps, seed 1: GPU fp32 $(demo --steps 400 --seed 1 --device cuda --dtype fp32), bf16 $(demo --steps 400 --seed 1 --device cuda --dtype bf16)"
}

# compute-sanitizer. memcheck looks at every kernel, the libraries' too: addresses are ours. Hazards in shared memory and reads of memory that
# nobody wrote are a kernel's own business, so racecheck and initcheck leave out kernels that the libraries brought: by parts of names
# that only theirs have (checked below against all of our device code), and excluded rather than ours included, because a filter that includes
# matches no kernel compiled at run time and then finds nothing. One option for each name: the manual says that all parts of one filter must
# match ("Specifying Filters"). Names may fail to match cuDNN's kernels too, which it compiles at run time: what is reported all the same is
# told apart by name. SANITIZE_LIBRARIES=1 leaves none out.
# initcheck: the arena is zeroed when it is allocated (moments of AdamW begin as zeros), and that counts as written: it sees only what
# lies beside the arena. For the arena there is --poison: all but parameters and moments begins as NaN, gaps and padding included, and a check
# that passes with it read nothing in its first step that nobody had written. memcheck and the part "right" run with it.
THEIRS=(cutlass nvjet xmma cublas splitKreduce gemvx gemvNSP gemv2 cudnn)
sanitizer() {
    command -v compute-sanitizer && return
    local s
    for s in /usr/local/cuda*/bin/compute-sanitizer /usr/local/cuda*/compute-sanitizer/compute-sanitizer; do [ -x "$s" ] && echo "$s" && return; done
    return 1
}
# How often reports name each kernel, those of the libraries marked: "=========     at NAME+0x..." or "at void NAME(...)".
sanitize_names() {
    sed -n 's/^=========.* at \(void \)*\([A-Za-z_][A-Za-z0-9_:<>]*\).*/\2/p' "$1" | sort | uniq -c | sort -rn | awk -v theirs="$EXCLUDED" '
        BEGIN { n = split(theirs, part, " ") }
        { own = "a library'"'"'s own"
          for (i = 1; i <= n; i++) if (index($2, part[i])) break
          if (i > n) { own = "OURS"; ours += $1 }
          if (NR <= 5) printf "; %s named %d times (%s)", $2, $1, own }
        END { if (NR == 0) printf "; no kernel named"; else if (!ours) printf "; none in our kernels" }'
}
sanitize_one() {  # tool fixture options...
    local tool=$1 f=$2 n rc log args=(--tool "$1" --error-exitcode 9 --print-limit 1000 --report-api-errors no)
    shift 2
    log="$OUT/sanitize_${tool}_$f$(echo "$*" | tr -cd 'a-z0-9').log"
    [ "$tool" = memcheck ] && set -- --poison "$@"
    [ "$tool" != memcheck ] && [ "${SANITIZE_LIBRARIES:-0}" = 0 ] && for n in $EXCLUDED; do args+=(--kernel-name-exclude "kns=$n"); done
    timeout 180 "$SANITIZER" "${args[@]}" "$A" check "test/data/fixtures/$f/model.pt2" --golden "test/data/fixtures/$f/b2s64.safetensors" --device cuda \
        --no-graph "$@" >"$log" 2>&1
    rc=$?
    echo "compute-sanitizer $tool $f $*: $(
        case $rc in
        0) echo "clean; $(grep -a 'check:' "$log" | tail -1)" ;;
        124) echo "not done after 180 s; $(grep -ac '^=========.*\(Invalid\|Uninitialized\|Error\|hazard\)' "$log") reports until then" ;;
        9) grep -a 'SUMMARY' "$log" | tail -1 | tr -d '=\n'
           sanitize_names "$log" ;;
        *) echo "failed ($rc): $(tail -1 "$log")" ;;
        esac)"
}
export -f sanitize_one sanitize_names
part_sanitize() {
    note "compute-sanitizer"
    SANITIZER=$(sanitizer) || { row "compute-sanitizer: not on this machine"; return; }
    local n tool f
    for n in "${THEIRS[@]}"; do
        # kernels' names are made by macros and by the generators: any word of a file that has kernels, but for comments
        grep -rl GPU_KERNEL src/backend/cuda | xargs sed 's,//.*,,' | grep -q "$n" &&
            { row "compute-sanitizer: $n may be in a kernel's name of ours"; return; }
    done
    EXCLUDED=${THEIRS[*]}
    export SANITIZER EXCLUDED
    "$SANITIZER" --version | tail -1
    for tool in memcheck racecheck initcheck; do
        for f in llama doc_mask mixtral short_conv; do
            echo "$tool $f"
            echo "$tool $f --dtype bf16 $([ $f = mixtral ] && echo --hold-routing)"
        done
    done >"$OUT/sanitize.todo"
    limited "$PART_SECONDS" xargs -P 6 -L 1 bash -c 'sanitize_one "$@"' sanitize < <(sed 's/ *$//' "$OUT/sanitize.todo") | tee -a "$OUT/rows.txt"
}

for part in "${parts[@]}"; do
    declare -F "part_$part" >/dev/null || { echo "no part $part" >&2; exit 3; }
done
for part in "${parts[@]}"; do
    begin=$SECONDS
    "part_$part"
    row "-- part $part: $((SECONDS - begin)) s"
    note "part $part took $((SECONDS - begin)) s"
done
echo
echo "== table ($(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1), $(date +%F))"
cat "$OUT/rows.txt"
