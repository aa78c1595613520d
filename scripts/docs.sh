#!/bin/sh
# Install the docs extra, and build the documentation into site/. A warning is an error. Arguments are passed to mkdocs.
set -eu
ROOT=$(cd "$(dirname "$0")/.." && pwd)
STARFC_EXTRAS='[docs]'
. "$ROOT/scripts/environment.sh"
cd "$ROOT"
exec "$PYTHON" -m mkdocs build --strict "$@"
