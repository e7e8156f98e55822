#!/bin/sh
# The documentation against the code: every op and attribute stands in docs/ir.md, every imported operation in docs/aten.md, every
# option of the command is spelled in its help, relative links lead somewhere, every source folder has a README.
# Usage: docs.sh AUTOSP [DATA SANITIZED_BUILD]
set -eu
cd "$(dirname "$0")/../.."
autosp=$1
bad=0
complain() {
    echo "$1"
    bad=1
}

for name in $(sed -n 's/^OP([A-Z0-9_]*, "\([a-z0-9_]*\)".*/\1/p' src/ops/ops.def); do
    grep -q "\`$name\`" docs/ir.md || complain "docs/ir.md: op $name is missing"
done
for name in $(sed -n 's/^ATTR([A-Z0-9_]*, "\([a-z0-9_]*\)".*/\1/p' src/ir/attrs.def); do
    grep -q "\`$name\`" docs/ir.md || complain "docs/ir.md: attribute $name is missing"
done
for name in $(sed -n '/^const LowerRow/,/^};/p' src/import/lower_*.c | grep -o '{"[^"]*"' | tr -d '{"' | sort -u); do
    grep -qF "\`$name\`" docs/aten.md || complain "docs/aten.md: $name is missing"
done

# Passes in the help of dump are the passes there are.
passes=$("$autosp" dump x.pt2 --after nothing 2>&1 | sed -n 's/.*they are //p' | tr -d ',')
[ -n "$passes" ] || complain "no list of passes"
for p in $passes; do
    [ "$p" = plan ] || "$autosp" dump --help | grep -qw -- "$p" || complain "autosp dump --help: pass $p is missing"
done
# Help is given, and leaks nothing.
for command in check plan dump train; do
    for program in "$autosp" "${3:-}/autosp"; do
        [ ! -x "$program" ] || "$program" $command --help >/dev/null || complain "$program $command --help fails"
    done
done

for file in $(git ls-files '*.md' 2>/dev/null || find . -name '*.md' -not -path './build*'); do
    [ -f "$file" ] || continue
    for link in $(grep -o '](\([^)#]*\)[)#]' "$file" | sed 's/^](//; s/[)#]$//' | grep -v '^[a-z]*:' || true); do
        [ -e "$(dirname "$file")/$link" ] || complain "$file: link to $link, which does not exist"
    done
done
for folder in src src/*/ src/pass/shard src/backend/cpu src/backend/cuda tools test bench examples scripts python docs; do
    [ -f "$folder/README.md" ] || complain "$folder has no README.md"
done
[ $bad = 0 ]
