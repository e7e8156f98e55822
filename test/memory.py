#!/usr/bin/env python3
"""Memory: twice the length is twice the arena but for parameters and moments (within 5 %), no S x S tensor, and a check at 8,192 positions stays small.

    memory.py AUTOSP DATA            MEMORY_LONG=1: 32,768 positions too, under 1.5 GB (minutes)
"""
import json
import os
import resource
import subprocess
import sys

AUTOSP, DATA = sys.argv[1], sys.argv[2]
bad = 0


def fail(text):
    global bad
    bad += 1
    print("FAILED:", text)


def arena(name, seq, ranks):
    """Bytes of the largest arena without parameters and moments, which are a tenth of it at 4,096."""
    p = subprocess.run([AUTOSP, "plan", f"{DATA}/fixtures/{name}/model.pt2", "--seq", str(seq), "--batch", "1",
                        "--ranks", str(ranks), "--json"], capture_output=True, text=True, check=True)
    plan = json.loads(p.stdout)
    if plan["square_tensors"]:
        fail(f"{name} at {seq}: S x S tensors: {plan['square_tensors']}")
    kinds = [r["nbytes_by_kind_at_peak"] for r in plan["per_rank"]]
    return max(r["peak_nbytes"] - k["parameters"] - k["moments"] for r, k in zip(plan["per_rank"], kinds))


def doubling():
    for name in ("llama", "mistral_window", "mixtral", "short_conv", "llama_packed", "doc_mask"):
        for ranks in (1, 2):
            a, b = arena(name, 4096, ranks), arena(name, 8192, ranks)
            if not 1.9 <= b / a <= 2.1:
                fail(f"{name} on {ranks} ranks: {a} bytes at 4096, {b} at 8192: {b / a:.3f} times")


def peak(seq, limit):
    p = subprocess.run([AUTOSP, "check", f"{DATA}/fixtures/llama/model.pt2", "--seq", str(seq), "--batch", "1", "--ranks", "2", "--steps", "1"],
                       capture_output=True, text=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"check at {seq} on 2 ranks: {used / 1e6:.0f} MB at most")
    if p.returncode:
        fail(f"check at {seq}: {p.stdout} {p.stderr}")
    if used > limit:
        fail(f"check at {seq} takes {used / 1e6:.0f} MB, more than {limit / 1e6:.0f}")


doubling()
peak(8192, 400e6)
if os.environ.get("MEMORY_LONG"):
    peak(32768, 1500e6)
sys.exit(1 if bad else 0)
