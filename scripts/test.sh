#!/bin/sh
# Set up with the extras dev and docs, check style and types, run the test suite. Arguments go to pytest.
set -eu
ROOT=$(cd "$(dirname "$0")/.." && pwd)
STARFC_EXTRAS='[dev,docs]'
. "$ROOT/scripts/environment.sh"
cd "$ROOT"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
exec "$PYTHON" -m pytest "$@"
