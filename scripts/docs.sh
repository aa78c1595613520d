#!/bin/sh
# Set up with the docs extra and build the documentation into site/; a warning is an error. Arguments go to mkdocs.
set -eu
ROOT=$(cd "$(dirname "$0")/.." && pwd)
STARFC_EXTRAS='[docs]'
. "$ROOT/scripts/environment.sh"
cd "$ROOT"
exec "$PYTHON" -m mkdocs build --strict "$@"
