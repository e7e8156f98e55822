"""Checks the shape of the C sources: check_includes.py ROOT

An include goes up this list, or to its own folder. `pass` and `plan` share a rank: placements are chosen by the planner's device model.
The one edge that goes down is named: adding a node asks the op's record for the result's type.
"""
import pathlib
import re
import sys

ORDER = [["base"], ["ir"], ["ops"], ["import"], ["backend"], ["pass", "plan"], ["comm"], ["exec"], ["driver"], ["train"], ["api"], ["tools"]]
RANK = {name: i for i, group in enumerate(ORDER) for name in group}
ALLOWED = {("ir", "ops/op.h"), ("ir", "ops/ops.def")}
MAX_FILE, MAX_FUNCTION = 800, 80


def folder(path):
    if path.parts[0] == "tools":
        return "tools"
    return path.parts[1] if path.parts[0] == "src" and len(path.parts) > 2 else None


def check_includes(path, lines, errors):
    mine = folder(path)
    for i, line in enumerate(lines, 1):
        m = re.match(r'\s*#\s*include\s+"(([^"/]+)/[^"]+)"', line)
        if not m or m.group(2) not in RANK or mine is None or (mine, m.group(1)) in ALLOWED:
            continue
        other = m.group(2)
        if RANK[other] > RANK[mine]:
            errors.append(f"{path}:{i}: {mine} may not include {other} ({' < '.join('='.join(g) for g in ORDER)})")
        if mine == "backend" and other == "backend":
            parts = re.match(r'\s*#\s*include\s+"backend/([^"/]+)/', line)
            if parts and parts.group(1) != path.parts[2]:
                errors.append(f"{path}:{i}: one backend may not include another")


def check_functions(path, lines, errors):
    """A function starts at a line in column 0 that ends with an opening brace and is no type, table or extern block."""
    start = None
    for i, line in enumerate(lines, 1):
        if re.match(r"[A-Za-z_].*\)\s*\{\s*$", line) and not line.startswith(("typedef", "struct", "enum", "union")):
            start = i
        elif line.startswith("}") and start is not None:
            if i - start + 1 > MAX_FUNCTION:
                errors.append(f"{path}:{start}: a function of {i - start + 1} lines (at most {MAX_FUNCTION})")
            start = None


def main():
    root = pathlib.Path(sys.argv[1]).resolve()
    errors, n = [], 0
    for top in ("src", "tools", "include", "test", "bench"):
        for path in sorted((root / top).rglob("*")):
            if path.suffix not in (".c", ".h", ".def", ".cu", ".cuh", ".py", ".sh"):
                continue
            lines = path.read_text().splitlines()
            short = path.relative_to(root)
            n += 1
            if len(lines) > MAX_FILE:
                errors.append(f"{short}: {len(lines)} lines (at most {MAX_FILE})")
            if path.suffix in (".c", ".h", ".cu", ".cuh"):
                check_includes(short, lines, errors)
                check_functions(short, lines, errors)
    print("\n".join(errors) if errors else f"{n} files: includes, lengths of files and functions are fine")
    return 1 if errors or not n else 0


if __name__ == "__main__":
    sys.exit(main())
