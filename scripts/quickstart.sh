#!/bin/sh
# Install the package, and cluster the bundled sample with the bundled weights. Arguments are passed to test_final.py.
set -eu
ROOT=$(cd "$(dirname "$0")/.." && pwd)
. "$ROOT/scripts/environment.sh"
exec "$PYTHON" "$ROOT/test_final.py" --config "$ROOT/configs/cfg_gcn_structural_any.py" "$@"
