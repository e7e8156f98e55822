#!/usr/bin/env python3
"""Determinism of training on the CPU: a rerun is bitwise the same, and so is a run that was interrupted and resumed; the number of ranks
changes losses within rounding only; another seed changes them.

    determinism.py AUTOSP DATA
"""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile

AUTOSP, DATA = sys.argv[1], sys.argv[2]
TMP = tempfile.mkdtemp(prefix="autosp-same-")
STEPS = 12
bad = 0


def fail(text):
    global bad
    bad += 1
    print("FAILED:", text)


def command(model, out, ranks=2, seed=3, *more):
    return [AUTOSP, "train", f"{DATA}/fixtures/{model}/model.pt2", "--data", TMP + "/text", "--seq", "101", "--batch", "2", "--ranks", str(ranks), "--threads", "2",
            "--steps", str(STEPS), "--seed", str(seed), "--quiet", "--out", f"{TMP}/{out}", *more]


def train(model, out, ranks=2, seed=3, *more):
    p = subprocess.run(command(model, out, ranks, seed, *more), capture_output=True, text=True)
    if p.returncode:
        fail(f"{model} {out}: {p.stderr}")
    return result(out)


def result(out):
    """(loss and norm by step, bytes of the model and the optimizer)"""
    steps = {}
    with open(f"{TMP}/{out}/metrics.jsonl") as f:
        for line in f:
            m = json.loads(line)
            steps[m["step"]] = (m["loss"], m["grad_norm"], m["lr"])
    files = []
    for name in ("model.safetensors", "optimizer.safetensors"):
        with open(f"{TMP}/{out}/{name}", "rb") as f:
            files.append(f.read())
    return steps, files


def interrupted(model, out, at):
    """Ctrl-C after step `at`, then resumed to the end."""
    p = subprocess.Popen(command(model, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in p.stdout:
        if line.startswith(f"step {at}/"):
            p.send_signal(signal.SIGINT)
            break
    text = p.communicate()[0]
    if p.returncode:
        fail(f"{model}: interrupted: exit {p.returncode}")
    if "stopped and saved" not in text:
        print(f"{model}: was done before the signal came")
    return train(model, out, 2, 3, "--resume")


def same(what, a, b):
    if a[0] != b[0]:
        first = next(s for s in sorted(a[0]) if a[0].get(s) != b[0].get(s))
        fail(f"{what}: step {first}: {a[0].get(first)} and {b[0].get(first)}")
    elif a[1] != b[1]:
        fail(f"{what}: the saved files differ")


def near(what, a, b, limit):
    worst = max(abs(a[0][s][0] - b[0][s][0]) / abs(b[0][s][0]) for s in b[0])
    if not worst <= limit:
        fail(f"{what}: losses differ by {worst:.2e}, more than {limit:.0e}")


def main():
    rng = random.Random(1)
    words = ["lake", "stone", "river", "cloud", "a", "the", "of", "and", "grey", "old"]
    with open(TMP + "/text", "w") as f:
        f.write(" ".join(rng.choice(words) for _ in range(4000)))
    for model in ("llama", "mixtral", "gpt2"):
        once = train(model, model + "-once")
        if len(once[0]) != STEPS or not all(v[0] > 0 for v in once[0].values()):
            fail(f"{model}: {len(once[0])} steps")
        same(f"{model}: rerun", train(model, model + "-again"), once)
        same(f"{model}: resumed", interrupted(model, model + "-stopped", 4), once)
        for ranks in (1, 3):
            near(f"{model}: {ranks} ranks against 2", train(model, f"{model}-{ranks}", ranks), once, 1e-5)
        if train(model, model + "-seed", 2, 4)[0] == once[0]:
            fail(f"{model}: another seed changes nothing")
    print(f"{bad} bad")
    return 1 if bad else 0


try:
    code = main()
finally:
    shutil.rmtree(TMP, ignore_errors=True)
sys.exit(code)
