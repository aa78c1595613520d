# The other scripts source this file, with ROOT set to the repository. It sets PYTHON to an interpreter with the package:
#   STARFC_PYTHON=/path/to/python   use that interpreter, and install missing packages into it
#   an active virtual environment   use it in the same way
#   otherwise                       use .venv, and create it if there is none
# STARFC_EXTRAS: extras to install, such as [dev]. Without it only the packages for clustering are installed. Versions
# are those of requirements.txt. A file in the environment notes what was installed, so a second run installs nothing.

if [ -n "${STARFC_PYTHON:-}" ]; then
    PYTHON=$STARFC_PYTHON
elif [ -n "${VIRTUAL_ENV:-}" ]; then
    PYTHON=$VIRTUAL_ENV/bin/python
else
    if [ ! -x "$ROOT/.venv/bin/python" ]; then
        for candidate in python3 python python3.13 python3.12 python3.11 python3.10; do
            if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
                "$candidate" -m venv "$ROOT/.venv"
                break
            fi
        done
    fi
    PYTHON=$ROOT/.venv/bin/python
fi
if ! "$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
    echo "error: $PYTHON: must be Python 3.10 to 3.13; name one with STARFC_PYTHON=/path/to/python" >&2
    exit 2
fi

extras=${STARFC_EXTRAS:-}
prefix=$("$PYTHON" -c 'import sys; print(sys.prefix)')
stamp=$prefix/.starfc-installed$extras
wanted=$(printf '%s\n' "$ROOT"; cat "$ROOT/requirements.txt" "$ROOT/pyproject.toml")
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing into $prefix (takes minutes, only once)" >&2
    "$PYTHON" -m pip install --quiet --constraint "$ROOT/requirements.txt" --editable "$ROOT$extras"
    printf '%s\n' "$wanted" >"$stamp" || echo "$stamp: cannot be written; the next run installs again" >&2
fi
