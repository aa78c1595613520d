#!/bin/sh
# Install the extras dev and docs, check style and types, and run the tests, with one process for each core and at most
# four. Arguments are passed to pytest. With --fast as the first argument, the tests with the marker `long` are left out.
set -eu
ROOT=$(cd "$(dirname "$0")/.." && pwd)
STARFC_EXTRAS='[dev,docs]'
. "$ROOT/scripts/environment.sh"
cd "$ROOT"
if [ "${1:-}" = --fast ]; then
    shift
    set -- -m 'not slow and not long' --durations=10 --durations-min=2 "$@"
fi
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
exec "$PYTHON" -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
