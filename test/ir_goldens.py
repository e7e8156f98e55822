#!/usr/bin/env python3
"""IR goldens: runs the commands of .ir files and looks for the expected lines.

    ir_goldens.py AUTOSP DATA FILE...

    # RUN: dump --parse %s --after mask        %s: this file, %D: the data folder; several RUNs per file, each with its CHECKs
    # CHECK: text          some later line of the output contains it (spaces count as one)
    # CHECK-NEXT: text     the very next line contains it
    # CHECK-NOT: text      no line between the last match and the next contains it
"""
import shlex
import subprocess
import sys


def cases(path):
    run = []
    with open(path) as f:
        for number, line in enumerate(f, 1):
            for kind in ("RUN", "CHECK", "CHECK-NEXT", "CHECK-NOT"):
                head = f"# {kind}:"
                if line.startswith(head):
                    text = " ".join(line[len(head):].split())
                    if kind == "RUN":
                        run.append((text, []))
                    else:
                        run[-1][1].append((kind, text, number))
    return run


def check(lines, checks, path):
    """None, or what is wrong."""
    at, forbidden = 0, []  # `at`: first line not yet looked at
    for kind, text, number in checks + [("END", "", 0)]:
        if kind == "CHECK-NOT":
            forbidden.append((text, number))
            continue
        end = at
        if kind == "CHECK":
            while end < len(lines) and text not in lines[end]:
                end += 1
            if end == len(lines):
                return f"{path}:{number}: no line after output line {at} has: {text}"
        elif kind == "CHECK-NEXT":
            if end == len(lines) or text not in lines[end]:
                return f"{path}:{number}: output line {end + 1} does not have: {text}"
        else:
            end = len(lines)
        for word, where in forbidden:
            for i in range(at, end):
                if word in lines[i]:
                    return f"{path}:{where}: output line {i + 1} has: {word}"
        at, forbidden = end + 1, []
    return None


def main():
    autosp, data, files = sys.argv[1], sys.argv[2], sys.argv[3:]
    bad = total = 0
    for path in files:
        runs = cases(path)
        if not runs or not all(checks for _, checks in runs):
            print(f"{path}: no RUN, or a RUN without CHECK")
            bad += 1
        for command, checks in runs:
            total += 1
            args = [a.replace("%s", path).replace("%D", data) for a in shlex.split(command)]
            p = subprocess.run([autosp] + args, capture_output=True, text=True)
            lines = [" ".join(line.split()) for line in p.stdout.splitlines()]
            wrong = f"{path}: {command}: exit {p.returncode}: {p.stderr[:500]}" if p.returncode else check(lines, checks, path)
            if wrong:
                bad += 1
                print(wrong)
                print("".join(f"    {i + 1}: {line[:200]}\n" for i, line in enumerate(lines[:80])))
    print(f"{total} runs, {bad} bad")
    return 1 if bad or not total else 0


if __name__ == "__main__":
    sys.exit(main())
