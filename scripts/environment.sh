# Sourced by the other scripts, with ROOT set to the repository: sets PYTHON to an interpreter that has this package.
#   STARFC_PYTHON=/path/to/python   use that interpreter, and install what it lacks into it
#   an active virtual environment   the same
#   otherwise                       .venv, made here if there is none
# STARFC_EXTRAS: extras to install, such as [dev]; without it what clustering needs, and no more. Versions are held to those
# of requirements.txt. What was installed is noted in the environment; a second run installs nothing.

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
    echo "error: $PYTHON: Python 3.10 to 3.13 needed; name one with STARFC_PYTHON=/path/to/python" >&2
    exit 2
fi

extras=${STARFC_EXTRAS:-}
prefix=$("$PYTHON" -c 'import sys; print(sys.prefix)')
stamp=$prefix/.starfc-installed$extras
wanted=$(printf '%s\n' "$ROOT"; cat "$ROOT/requirements.txt" "$ROOT/pyproject.toml")
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing into $prefix (minutes, once)" >&2
    "$PYTHON" -m pip install --quiet --constraint "$ROOT/requirements.txt" --editable "$ROOT$extras"
    printf '%s\n' "$wanted" >"$stamp" || echo "$stamp: cannot be written; the next run installs again" >&2
fi
