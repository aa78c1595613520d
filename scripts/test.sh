#!/bin/sh
# Install the extras dev and docs, check style and types, and run the tests. Arguments are passed to pytest.
set -eu
ROOT=$(cd "$(dirname "$0")/.." && pwd)
STARFC_EXTRAS='[dev,docs]'
. "$ROOT/scripts/environment.sh"
cd "$ROOT"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
exec "$PYTHON" -m pytest "$@"
