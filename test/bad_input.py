#!/usr/bin/env python3
"""Bad input: whatever is wrong with the arguments, the files or the machine, the command says so and leaves nothing half-written.

    bad_input.py AUTOSP DATA ASAN_BUILD

Every case must end with an exit code of 1 to 3 (no signal), a message with the words given here, no trace of a crash. Only the standard
library is used. Archives are damaged at the byte level and by rewriting members.
"""
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zipfile

AUTOSP, DATA, ASAN = sys.argv[1], os.path.abspath(sys.argv[2]), os.path.join(sys.argv[3], "autosp")
FIX = os.path.join(DATA, "fixtures")
LLAMA, GOLDEN = FIX + "/llama/model.pt2", FIX + "/llama/b2s64.safetensors"
CRASH = ("Sanitizer", "runtime error", "Aborted", "Segmentation", "core dumped", "CHECK", ".c:")
TMP = tempfile.mkdtemp(prefix="autosp-bad-")
count = bad = 0


def report(name, why, p=None):
    global bad
    bad += 1
    print(f"FAILED: {name}: {why}")
    if p is not None:
        print(f"    exit {p.returncode}\n    stdout: {p.stdout[-600:]}\n    stderr: {p.stderr[-600:]}")


def run(args, autosp=AUTOSP, timeout=120, **kw):
    env = dict(os.environ, ASAN_OPTIONS="exitcode=99:abort_on_error=0", UBSAN_OPTIONS="exitcode=99:halt_on_error=1")
    return subprocess.run([autosp] + [str(a) for a in args], capture_output=True, text=True, errors="replace", timeout=timeout, env=env, **kw)


def refused(name, args, *words, autosp=AUTOSP, may_pass=False, **kw):
    """The command must refuse, with all of `words` (case ignored) in its message. may_pass: harmless damage is allowed."""
    global count
    count += 1
    try:
        p = run(args, autosp, **kw)
    except subprocess.TimeoutExpired:
        return report(name, f"does not end: {args}")
    text = p.stdout + p.stderr
    if p.returncode == 0 and may_pass:
        return
    if not 1 <= p.returncode <= 3:
        return report(name, "not refused" if p.returncode == 0 else "not an orderly exit", p)
    for c in CRASH:
        if c in text:
            return report(name, f"looks like a crash ({c})", p)
    if not text.strip():
        return report(name, "says nothing", p)
    for w in words:
        if w.lower() not in text.lower():
            return report(name, f"does not say \"{w}\"", p)


def path(name):
    return os.path.join(TMP, name)


def write(name, data):
    with open(path(name), "wb") as f:
        f.write(data)
    return path(name)


def read(p):
    with open(p, "rb") as f:
        return f.read()


# ---- safetensors ------------------------------------------------------------------------------------------------------------

SIZE = {"F64": 8, "F32": 4, "I64": 8, "I32": 4, "BF16": 2, "U16": 2, "U8": 1}


def load(p):
    data = read(p)
    n = struct.unpack("<Q", data[:8])[0]
    head = json.loads(data[8:8 + n])
    head.pop("__metadata__", None)
    return {k: [v["dtype"], v["shape"], data[8 + n + v["data_offsets"][0]:8 + n + v["data_offsets"][1]]] for k, v in head.items()}


def store(name, tensors):
    head, body = {}, b""
    for k, (dtype, shape, data) in tensors.items():
        head[k] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(head).encode()
    return write(name, struct.pack("<Q", len(text)) + text + body)


def raw(head, body=b""):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + body


def i64(*v):
    return struct.pack(f"<{len(v)}q", *v)


def changed(name, key, value):
    """The golden with one tensor replaced, or without it (None)."""
    t = load(GOLDEN)
    if value is None:
        del t[key]
    else:
        t[key] = value
    return store(name, t)


# ---- archives ---------------------------------------------------------------------------------------------------------------

def rewrite(name, edit, source=LLAMA):
    """The archive with members changed by edit(name, bytes) -> bytes, None to drop it."""
    out = path(name)
    with zipfile.ZipFile(source) as z, zipfile.ZipFile(out, "w") as w:
        for info in z.infolist():
            data = edit(info.filename, z.read(info.filename))
            if data is not None:
                w.writestr(info.filename, data)
    return out


def edit_model(name, change, source=LLAMA):
    """model.json changed by change(text) -> text."""
    def edit(member, data):
        return change(data.decode()).encode() if member.endswith("models/model.json") else data
    return rewrite(name, edit, source)


def replaced(a, b, times=1):
    def change(text):
        assert a in text, a
        return text.replace(a, b, times)
    return change


def check(model=LLAMA, golden=GOLDEN, *more):
    return ["check", model, "--golden", golden, "--ranks", "2", "--threads", "1", *more]


def check_seq(model=LLAMA, seq=32, *more):
    return ["check", model, "--seq", seq, "--ranks", "2", "--batch", "1", "--steps", "1", *more]


# ---- the cases --------------------------------------------------------------------------------------------------------------

def arguments():
    refused("no command", [])
    refused("unknown command", ["chekc"], "chekc")
    for command in ("check", "plan", "dump", "train"):
        refused(f"{command} without file", [command])
        refused(f"{command}: unknown option", [command, LLAMA, "--frobnicate"], "--frobnicate")
        refused(f"{command}: option without value", [command, LLAMA, "--ranks"], "--ranks")
        refused(f"{command}: two programs", [command, LLAMA, LLAMA, "--seq", "32"])
    for p in ("0", "-1", "1000000000", "99999999999999999999", "two", "", "1e9", "2x"):
        refused(f"--ranks {p}", ["plan", LLAMA, "--seq", "32", "--ranks", p], "rank")
    for s, word in (("-5", "sequence"), ("1000000000000000", "too many"), ("99999999999999999999", "--seq"), ("x", "--seq")):
        refused(f"--seq {s}", ["plan", LLAMA, "--seq", s, "--ranks", "2"], word)
    for s in ("0", "-1"):
        refused(f"check --seq {s}", ["check", LLAMA, "--seq", s, "--ranks", "2"], "seq")
    refused("check below the range", check_seq(seq="1"), "range")
    refused("a batch that fits nowhere", check_seq() + ["--batch", "1000000000"], "REFUSED")
    for b, word in (("-1", "batch"), ("1000000000000000", "too many"), ("x", "--batch")):
        refused(f"--batch {b}", ["plan", LLAMA, "--seq", "32", "--batch", b], word)
    refused("check --stop-after", ["check", LLAMA, "--seq", "8", "--stop-after", "grad"], "--stop-after", "whole steps")
    refused("train --stop-after", ["train", LLAMA, "--data", __file__, "--seq", "8", "--steps", "1", "--stop-after", "grad", "--out", path("stop")], "--stop-after", "whole steps")
    refused("--threads -1", ["plan", LLAMA, "--seq", "32", "--threads", "-1"], "thread")
    refused("--threads 10^9", ["plan", LLAMA, "--seq", "32", "--threads", "1000000000"], "thread")
    for t in ("0", "-5", "8x", "x", ""):
        refused(f"--tile {t}", ["plan", LLAMA, "--seq", "32", "--tile", t], "--tile", "off")
    refused("--attention foo", ["plan", LLAMA, "--seq", "32", "--attention", "foo"], "foo", "gather-kv")
    refused("--after nowhere", ["dump", LLAMA, "--after", "nowhere"], "nowhere", "canonicalize")
    refused("--steps 0", check_seq() + ["--steps", "0"], "steps")
    refused("neither golden nor length", ["check", LLAMA, "--ranks", "2"], "--golden", "--seq")
    refused("golden and inputs", check() + ["--inputs", GOLDEN], "--inputs")
    refused("too long for the guards", check_seq(FIX + "/manual_attention/model.pt2", 300), "REFUSED", "256")
    refused("an attention strategy for a wrong plan", ["plan", LLAMA, "--seq", "32", "--ranks", "2", "--decisions", LLAMA], "model.pt2:1")


def decisions():
    good = path("plan.json")
    p = run(["plan", LLAMA, "--seq", "32", "--ranks", "2", "--save", good])
    if p.returncode:
        return report("plan --save", "fails", p)
    for name, text in (("empty", b""), ("garbage", b"\x00\xff garbage"), ("not a plan", b"{}"), ("a list", b"[1, 2]"), ("cut", read(good)[:len(read(good)) // 2]),
                       ("unknown strategy", read(good).replace(b"gather-kv", b"telepathy").replace(b"\"head\"", b"\"telepathy\""))):
        refused(f"decisions: {name}", check() + ["--decisions", write("d.json", text)], "telepathy" if name == "unknown strategy" else "d.json")
    refused("decisions: of another program", ["check", FIX + "/short_conv/model.pt2", "--golden", FIX + "/short_conv/b2s64.safetensors", "--ranks", "3", "--decisions",
                                             good], "decisions", may_pass=True)
    refused("decisions: missing file", check() + ["--decisions", path("nothing")], "nothing")


def files():
    empty = write("empty.pt2", b"")
    for name, p in (("missing", path("no.pt2")), ("folder", TMP), ("empty", empty), ("text", write("text.pt2", b"hello\n" * 100)), ("golden as program", GOLDEN)):
        refused(f"program: {name}", check(p), os.path.basename(p))
    for name, p in (("missing", path("no.safetensors")), ("empty", empty), ("program as golden", LLAMA), ("folder", TMP)):
        refused(f"golden: {name}", check(LLAMA, p), os.path.basename(p))
    refused("weights: missing", check() + ["--weights", path("no.safetensors")], "no.safetensors")
    refused("weights: empty folder", check() + ["--weights", TMP], os.path.basename(TMP))
    refused("weights: none of its tensors", check() + ["--weights", store("w.safetensors", {"a": ["F32", [1], b"\0\0\0\0"]})], "w.safetensors", "none of its 1 tensors")
    refused("inputs: missing", check_seq() + ["--inputs", path("no.safetensors")], "no.safetensors")


def damaged_bytes():
    """Cut and flipped archives and goldens, by the sanitized build where there is one."""
    rng = random.Random(7)
    autosp = ASAN if os.path.exists(ASAN) else AUTOSP
    model, golden = read(LLAMA), read(GOLDEN)
    for k in range(12):
        cut = rng.randrange(len(model)) if k else len(model) - 1
        refused(f"program cut at {cut}", check(write("cut.pt2", model[:cut])), "cut.pt2", autosp=autosp)
    for k in range(40):
        flipped = bytearray(model)
        where = [rng.randrange(len(model)) for _ in range(1 + k % 3)]
        if k % 2:  # the directory at the end and the first headers matter most
            where = [rng.choice((rng.randrange(2000), len(model) - 1 - rng.randrange(3000))) for _ in where]
        for at in where:
            flipped[at] ^= 1 << rng.randrange(8)
        refused(f"program flipped at {where}", check(write("flip.pt2", bytes(flipped))), autosp=autosp, may_pass=True)
    for k in range(8):
        cut = rng.randrange(len(golden)) if k else len(golden) - 1
        refused(f"golden cut at {cut}", check(LLAMA, write("cut.safetensors", golden[:cut])), "cut.safetensors", autosp=autosp)
    for k in range(16):
        flipped = bytearray(golden)
        at = rng.randrange(8 + struct.unpack("<Q", golden[:8])[0])
        flipped[at] ^= 1 << rng.randrange(8)
        refused(f"golden flipped at {at}", check(LLAMA, write("flip.safetensors", bytes(flipped))), autosp=autosp, may_pass=True)


def archives():
    refused("no model.json", rewrite_check("a.pt2", lambda n, d: None if n.endswith("models/model.json") else d), "a.pt2", "models/")
    refused("no weights config", rewrite_check("a.pt2", lambda n, d: None if n.endswith("model_weights_config.json") else d), "weights")
    refused("model.json empty", rewrite_check("a.pt2", lambda n, d: b"" if n.endswith("models/model.json") else d), "model.json")
    refused("model.json not JSON", rewrite_check("a.pt2", lambda n, d: d[:-10] if n.endswith("models/model.json") else d), "model.json")
    refused("deep JSON", rewrite_check("a.pt2", lambda n, d: b"[" * 100000 if n.endswith("models/model.json") else d), "model.json")
    refused("unknown op", check(edit_model("a.pt2", replaced("torch.ops.aten.rsqrt.default", "torch.ops.aten.frobnicate.default"))), "frobnicate", "modeling_llama.py")
    refused("unknown schema", check(edit_model("a.pt2", replaced("\"major\": 8" if "\"major\": 8" in model_text() else "\"major\":8", "\"major\": 9"))), "schema")
    refused("a weight cut short", rewrite_check("a.pt2", lambda n, d: d[:-4] if n.endswith("weights/weight_0") else d), "weight")
    nan = struct.pack("<f", float("nan"))
    refused("NaN weights", rewrite_check("a.pt2", lambda n, d: d[:400] + nan + d[404:] if n.endswith("weights/weight_1") else d), "weight", "100")
    inf = struct.pack("<f", float("inf"))
    refused("infinite weights", rewrite_check("a.pt2", lambda n, d: d[:400] + inf + d[404:] if n.endswith("weights/weight_1") else d), "weight")
    with zipfile.ZipFile(LLAMA) as z:
        names = z.namelist()
    bomb = path("bomb.pt2")
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as w:
        for n in names:
            w.writestr(n, b"\0" * (1 << 28) if n.endswith("models/model.json") else b"x")
    refused("zip bomb", check(bomb), "bomb.pt2", timeout=60)
    os.remove(bomb)
    twice = path("twice.pt2")
    shutil.copy(LLAMA, twice)
    with zipfile.ZipFile(twice, "a") as w:
        import warnings
        warnings.simplefilter("ignore")
        w.writestr(next(n for n in names if n.endswith("models/model.json")), b"{}")
    refused("a member twice", check(twice), "twice.pt2", "model.json")
    for word, other in (("\"input_ids\"", "\"nobody\""), ("as_tensor", "as_nothing"), ("\"sizes\"", "\"seizes\"")):
        if word in model_text():
            refused(f"{word} -> {other}", check(edit_model("a.pt2", replaced(word, other))), may_pass=False)


def model_text(source=LLAMA):
    with zipfile.ZipFile(source) as z:
        return z.read(next(n for n in z.namelist() if n.endswith("models/model.json"))).decode()


def rewrite_check(name, edit):
    return check(rewrite(name, edit))


def goldens():
    t = load(GOLDEN)
    ids = t["input_ids"]
    n = len(ids[2]) // 8
    for key in ("loss", "adamw_losses", "input_ids", "labels"):
        refused(f"golden without {key}", check(LLAMA, changed("g.safetensors", key, None)), key)
    first = list(struct.unpack(f"<{n}q", ids[2]))
    for value in (256, -1, 1 << 40, -(1 << 62)):
        v = list(first)
        v[17] = value
        refused(f"token id {value}", check(LLAMA, changed("g.safetensors", "input_ids", ["I64", ids[1], i64(*v)])), "token")
    for value in (256, -1, -99, 1 << 33):
        v = list(struct.unpack(f"<{n}q", t["labels"][2]))
        v[17] = value
        refused(f"label {value}", check(LLAMA, changed("g.safetensors", "labels", ["I64", ids[1], i64(*v)])))
    refused("labels of another length", check(LLAMA, changed("g.safetensors", "labels", ["I64", [2, 32], i64(*first[:64])])), "labels")
    refused("labels of another rank", check(LLAMA, changed("g.safetensors", "labels", ["I64", [128], t["labels"][2]])), "labels")
    refused("float labels", check(LLAMA, changed("g.safetensors", "labels", ["F32", ids[1], b"\0" * 4 * n])), "labels")
    refused("text in loss", check(LLAMA, changed("g.safetensors", "loss", ["U8", [8], b"\0" * 8])), "loss")
    refused("two losses", check(LLAMA, changed("g.safetensors", "loss", ["F64", [2], b"\0" * 16])), "loss")
    refused("a NaN loss", check(LLAMA, changed("g.safetensors", "loss", ["F64", [], struct.pack("<d", float("nan"))])), "FAIL")
    refused("another loss", check(LLAMA, changed("g.safetensors", "loss", ["F64", [], struct.pack("<d", 5.0)])), "FAIL")
    refused("gradient of nobody", check(LLAMA, changed("g.safetensors", "grad.nobody", ["F32", [1], b"\0" * 4])), "grad")
    one = "model.model.norm.weight" if "model.model.norm.weight" in model_text() else "model.norm.weight"
    refused("a gradient of another shape", check(LLAMA, changed("g.safetensors", "grad." + one, ["F32", [1], b"\0" * 4])), "shape")
    refused("an adamw loss of a strange dtype", check(LLAMA, changed("g.safetensors", "adamw_losses", ["U8", [5], b"\0" * 5])), "adamw_losses", "dtype")
    refused("a gradient of a strange dtype", check(LLAMA, changed("g.safetensors", "grad." + one, ["U8", [64], b"\0" * 64])), "grad." + one, "dtype")
    refused("short sequences", check(LLAMA, store("g.safetensors", dict(t, input_ids=["I64", [2, 1], i64(1, 2)], labels=["I64", [2, 1], i64(1, 2)]))),
            "REFUSED")
    heads = {
        "a header longer than the file": struct.pack("<Q", 1 << 40) + b"{}",
        "a header that is no JSON": raw(b"{\"a\": "),
        "a header that is a list": raw(b"[]"),
        "offsets beyond the file": raw({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 8),
        "offsets backwards": raw({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, b"\0" * 8),
        "offsets that disagree with the shape": raw({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"\0" * 8),
        "a negative size": raw({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"\0" * 8),
        "a shape that overflows": raw({"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]}}, b"\0" * 8),
        "overlapping tensors": raw({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, b"\0" * 12),
        "seven bytes": b"\0" * 7,
    }
    for name, data in heads.items():
        refused(f"safetensors: {name}", check(LLAMA, write("h.safetensors", data)), "h.safetensors")


def train(*more, data=None, out="out", steps=2):
    return ["train", LLAMA, "--data", data or path("text"), "--seq", 32, "--batch", 1, "--ranks", 2, "--threads", 1, "--steps", steps, "--quiet", "--out", path(out), *more]


def training():
    write("text", b"the quick brown fox jumps over the lazy dog. " * 40)
    refused("train without data", ["train", LLAMA, "--seq", 32, "--steps", 2, "--out", path("out")], "data")
    refused("train without steps", ["train", LLAMA, "--data", path("text"), "--seq", 32, "--out", path("out")], "steps")
    refused("train without length", ["train", LLAMA, "--data", path("text"), "--steps", 2, "--out", path("out")], "seq")
    refused("data missing", train(data=path("none")), "none")
    refused("data a folder", train(data=TMP), os.path.basename(TMP))
    refused("data empty", train(data=write("void", b"")), "0 tokens")
    refused("data shorter than a row", train(data=write("short", b"hello")), "token")
    refused("tokens beyond the vocabulary", train(data=write("t.u16", struct.pack("<400H", *range(400)))), "t.u16")
    refused("half a token", train(data=write("odd.u16", b"\0" * 4097)), "odd.u16")
    for dtype, item in (("U8", b"\3"), ("F8_E4M3", b"\3"), ("F32", b"\0" * 4)):  # 4 examples of 32 tokens
        table = store("table.safetensors", {"input_ids": [dtype, [4, 32], item * 128], "labels": ["I64", [4, 32], i64(*[3] * 128)]})
        refused(f"a table of {dtype} tokens", train(data=table), "input_ids", "dtype")
    refused("data format foo", train("--data-format", "foo"), "foo")
    for option, value in (("--lr", "nan"), ("--lr", "-1"), ("--lr", "x"), ("--min-lr", "2"), ("--clip", "-1"), ("--weight-decay", "-1"), ("--save-every", "x")):
        refused(f"train {option} {value}", train(option, value), option)
    for option, value in (("--warmup", "-7"), ("--save-every", "-1"), ("--beta1", "1.5"), ("--beta2", "-1"), ("--lr", "inf"), ("--lr", "1e-3x"), ("--clip", "nan")):
        refused(f"train {option} {value}", train(option, value), option)
    refused("out is a file", train(out="text"), "text")
    refused("out below a file", train(out="text/x"), "text")
    refused("out in /proc", train("--out", "/proc/autosp"), "/proc")
    refused("resume from nothing", train("--resume", out="fresh"), "fresh")
    if os.path.exists(path("out")):
        report("refused training", f"left {os.listdir(path('out'))}")
    refused("a diverging run", train("--lr", "1e30", "--clip", "0", "--warmup", "0", out="diverge", steps=6), "finite")
    refused("a last step that ruins the parameters", train("--lr", "1e39", "--warmup", "0", out="diverge", steps=1), "parameter", "not saved")
    if os.path.exists(path("diverge/model.safetensors")):
        report("a diverging run", "saved a model")


def good_then(name, action):
    """Trains two steps, then runs action(folder) and looks whether the model of before is still there."""
    folder = path(name)
    p = run(train(out=name))
    if p.returncode:
        return report(name, "training fails", p)
    before = {f: read(os.path.join(folder, f)) for f in ("model.safetensors", "optimizer.safetensors")}
    action(folder)
    for f, data in before.items():
        if not os.path.exists(os.path.join(folder, f)) or read(os.path.join(folder, f)) != data:
            report(name, f"{f} of before is gone or changed")
    left = [f for f in os.listdir(folder) if f not in ("model.safetensors", "optimizer.safetensors", "metrics.jsonl", "loss.svg", "lost+found")]
    if left:
        report(name, f"left {left}")


def older_model(folder):
    """As if killed between the two renames: an optimizer state with the parameters of an earlier step."""
    model, old = os.path.join(folder, "model.safetensors"), os.path.join(folder, "optimizer.safetensors")
    keep = read(model), read(old)
    run(train("--resume", out=os.path.basename(folder), steps=3))
    with open(model, "wb") as f:
        f.write(keep[0])
    refused("resume from files of different steps", train("--resume", out=os.path.basename(folder), steps=4), "same step")
    with open(old, "wb") as f:
        f.write(keep[1])


def saving():
    write("text", b"the quick brown fox jumps over the lazy dog. " * 40)

    def corrupt(what, damage):
        def action(folder):
            keep = {f: read(os.path.join(folder, f)) for f in ("model.safetensors", "optimizer.safetensors")}
            target = os.path.join(folder, what)
            damage(target)
            refused(f"resume from a damaged {what}", train("--resume", out=os.path.basename(folder), steps=4), what)
            for f, data in keep.items():
                with open(os.path.join(folder, f), "wb") as h:
                    h.write(data)
        return action

    def cut(target):
        os.truncate(target, os.path.getsize(target) // 2)

    for f in ("model.safetensors", "optimizer.safetensors"):
        good_then("resume-" + f[:5], corrupt(f, cut))
        good_then("gone-" + f[:5], corrupt(f, os.remove))
    good_then("older", older_model)
    good_then("seed", lambda folder: refused("resume with another seed", train("--resume", "--seed", 5, out="seed", steps=4), "--seed 1"))
    refused("check --out where a rename must not go", check() + ["--out", "/dev/full"], "/dev/full", "regular")
    refused("check --out in a folder that is not there", check() + ["--out", path("nowhere/g.safetensors")], "nowhere")
    refused("plan --save where nothing can be", ["plan", LLAMA, "--seq", 32, "--save", path("nowhere/p")], "nowhere")
    refused("plan --save where a rename must not go", ["plan", LLAMA, "--seq", 32, "--save", "/dev/full"], "/dev/full", "regular")
    disk = path("disk")
    os.mkdir(disk)
    if os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True).returncode == 0:
        try:
            def fill(folder):
                filler = os.open(os.path.join(disk, "filler"), os.O_CREAT | os.O_WRONLY)
                try:
                    while True:
                        os.write(filler, b"\0" * 4096)
                except OSError:
                    os.close(filler)
                refused("training onto a full disk", train(out="disk/run", steps=3), "disk")
                os.remove(os.path.join(disk, "filler"))
            good_then("disk/run", fill)
        finally:
            subprocess.run(["umount", disk])


def limits():
    """Writes that fail after so many bytes, as on a full disk, and memory that is not there."""
    def files_of(nbytes):
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))

    size = os.path.getsize(path("out/model.safetensors")) if os.path.exists(path("out/model.safetensors")) else 800000
    for nbytes in (0, 1, 5000, size // 2, size + 5000):
        def action(folder, n=nbytes):
            refused(f"training where files end at {n} bytes", train("--resume", out=os.path.basename(folder), steps=3), os.path.basename(folder), preexec_fn=files_of(n))
        good_then(f"limit{nbytes}", action)
        target = path(f"g{nbytes}.safetensors")
        refused(f"check --out where files end at {nbytes} bytes", check() + ["--out", target], "safetensors", preexec_fn=files_of(min(nbytes, 5000)))
        refused(f"plan --save where files end at {nbytes} bytes", ["plan", LLAMA, "--seq", 32, "--ranks", 2, "--save", path("p.json")], "p.json",
                preexec_fn=files_of(min(nbytes, 5)))
        if os.path.exists(target) or os.path.exists(path("p.json")):
            report(f"files that end at {nbytes} bytes", "something half-written is left")
    refused("memory that the machine has and the process may not have", ["check", LLAMA, "--seq", 131072, "--batch", 1, "--ranks", 2, "--threads", 1, "--steps", 1],
            "REFUSED", "allocate", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20)))


def interrupted():
    """Ctrl-C in the middle of training: saves, leaves with 0, and what it left can be resumed."""
    global count
    count += 1
    args = [AUTOSP] + [str(a) for a in train(out="stop", steps=1000000)]
    p = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in p.stdout:
        if line.startswith("step 3/"):
            break
    p.send_signal(signal.SIGINT)
    begin = time.time()
    try:
        out, err = p.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        p.kill()
        return report("Ctrl-C", "does not end")
    if p.returncode != 0 or "saved" not in out:
        return report("Ctrl-C", f"exit {p.returncode}: {out[-300:]} {err[-300:]}")
    if time.time() - begin > 20:
        report("Ctrl-C", "takes long")
    steps = sum(1 for _ in open(path("stop/metrics.jsonl")))
    p = run(train("--resume", out="stop", steps=steps + 2))
    if p.returncode or sum(1 for _ in open(path("stop/metrics.jsonl"))) != steps + 2:
        report("resuming after Ctrl-C", "did not do two more steps", p)


def main():
    try:
        for group in (arguments, decisions, files, damaged_bytes, archives, goldens, training, saving, limits, interrupted):
            begin = time.time()
            group()
            print(f"{group.__name__}: {time.time() - begin:.1f} s")
    finally:
        shutil.rmtree(TMP, ignore_errors=True)
    print(f"{count} cases, {bad} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
