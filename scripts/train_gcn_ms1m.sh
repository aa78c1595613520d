#!/bin/sh
# Train on MS1M, from any working directory. Arguments go to train.py.
set -eu
ROOT=$(cd "$(dirname "$0")/.." && pwd)
. "$ROOT/scripts/environment.sh"
exec "$PYTHON" "$ROOT/train.py" --config "$ROOT/configs/cfg_gcn_ms1m.py" "$@"
