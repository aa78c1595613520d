#!/bin/sh
# Build the sdist and the wheel, test the wheel in a new environment, and print the tag command. Publish nothing.
#   sh scripts/release.sh [DIR]          DIR: folder for the packages (default: dist)
#   STARFC_PYTHON=/path/to/python        the interpreter for the build and the test environment (default: python3)
#   STARFC_SYSTEM_SITE_PACKAGES=1        the test environment uses the packages of that interpreter, such as a large
#                                        torch; otherwise pip installs all dependencies
set -eu
ROOT=$(cd "$(dirname "$0")/.." && pwd)
OUT=${1:-$ROOT/dist}
PYTHON=${STARFC_PYTHON:-python3}
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() { echo "error: $*" >&2; exit 2; }
step() { echo "== $*"; }

step "version and changelog"
version=$(sed -n 's/^__version__ = "\([^"]*\)"$/\1/p' "$ROOT/src/starfc/version.py")
[ -n "$version" ] || fail "src/starfc/version.py: needs a line __version__ = \"X.Y.Z\"; found none"
grep -qF "## [$version]" "$ROOT/CHANGELOG.md" || fail "CHANGELOG.md: needs a heading ## [$version] - YYYY-MM-DD; found none"
if sed -n '/^## \[Unreleased\]/,/^## \[[0-9]/p' "$ROOT/CHANGELOG.md" | grep -q '^- '; then
    echo "warning: CHANGELOG.md has entries under Unreleased; give them the number of this release first" >&2
fi
if git -C "$ROOT" rev-parse --git-dir >/dev/null 2>&1; then
    git -C "$ROOT" rev-parse -q --verify "refs/tags/v$version" >/dev/null && fail "tag v$version: already exists"
    [ -z "$(git -C "$ROOT" status --porcelain)" ] || echo "warning: there are uncommitted changes" >&2
fi
echo "starfc $version"

step "sdist and wheel"
"$PYTHON" -m venv "$work/build"
"$work/build/bin/python" -m pip install --quiet build
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
# build from a copy of the files that git does not ignore: leftovers of an earlier build would get into the wheel
mkdir "$work/source"
(cd "$ROOT" && git ls-files -z --cached --others --exclude-standard | xargs -0 tar -cf - --) | tar -xf - -C "$work/source"
"$work/build/bin/python" -m build --outdir "$OUT" "$work/source" >"$work/build.log" 2>&1 || { cat "$work/build.log" >&2; fail "the build failed"; }
wheel=$OUT/starfc-$version-py3-none-any.whl
sdist=$OUT/starfc-$version.tar.gz
for file in "$wheel" "$sdist"; do
    [ -f "$file" ] || fail "$file: was not made by the build"
    echo "$(wc -c <"$file" | tr -d ' ') bytes  $(basename "$file")"
done
"$work/build/bin/python" - "$wheel" "$work/source/src" <<'PYTHON'
import sys, zipfile
from pathlib import Path

names = set(zipfile.ZipFile(sys.argv[1]).namelist())
source = Path(sys.argv[2])
wanted = {str(p.relative_to(source)) for p in source.rglob("*") if p.is_file() and "egg-info" not in str(p)}
wanted.discard("starfc/pretrained/README.md")
missing = sorted(wanted - names)
others = sorted(n for n in names - wanted if ".dist-info/" not in n)
if missing or others or not any(n.endswith("/licenses/LICENSE") for n in names):
    sys.exit(f"error: wheel: must hold the files of src and the licence; missing: {missing}; not from src: {others}")
print(f"the wheel holds all {len(wanted)} files of src, and the licence")
PYTHON

step "a clean environment"
if [ "${STARFC_SYSTEM_SITE_PACKAGES:-0}" = 1 ]; then
    "$PYTHON" -m venv --system-site-packages "$work/clean"
    "$work/clean/bin/python" -m pip install --quiet "$wheel"
    # install the wheel again, in case the interpreter already has the package
    "$work/clean/bin/python" -m pip install --quiet --no-deps --force-reinstall "$wheel"
else
    "$PYTHON" -m venv "$work/clean"
    "$work/clean/bin/python" -m pip install --quiet "$wheel"
    "$work/clean/bin/python" -m pip check
fi

step "the installed package"
cd "$work"
where=$("$work/clean/bin/python" -c 'import starfc; print(starfc.__file__)')
case $where in "$work/clean"/*) ;; *) fail "starfc is imported from $where, not from the wheel" ;; esac
found=$("$work/clean/bin/starfc" --version)
[ "$found" = "$version" ] || fail "starfc --version: must be $version; found $found"
echo "starfc --version: $found"
"$work/clean/bin/python" - <<'PYTHON'
import numpy as np

rng = np.random.default_rng(0)
labels = np.repeat(np.arange(20), 30)
np.save("tiny.npy", (rng.normal(size=(20, 64))[labels] + 0.5 * rng.normal(size=(600, 64))).astype(np.float32))
np.save("labels.npy", labels)
PYTHON
"$work/clean/bin/starfc" cluster tiny.npy -o results --labels labels.npy --quiet
"$work/clean/bin/python" - "$version" <<'PYTHON'
import json, sys
import numpy as np

record = json.load(open("results/run.json"))
labels, fscore = np.load("results/labels.npy"), record["metrics"]["pairwise"]["fscore"]
assert labels.shape == (600,) and fscore > 0.95, (labels.shape, fscore)
assert record["versions"]["starfc"] == sys.argv[1], record["versions"]
print(f"starfc cluster: 600 rows, {labels.max() + 1} clusters, pairwise F {fscore:.3f}")
PYTHON

step "done; to release this commit"
echo "git tag -a v$version -m \"starfc $version\" && git push origin v$version"
echo "# then upload $(basename "$wheel") and $(basename "$sdist") where packages are published"
