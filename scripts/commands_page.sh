#!/bin/sh
# Print docs/commands.md: the help of all commands.
#   sh scripts/commands_page.sh > docs/commands.md
set -eu
cd "$(dirname "$0")/.."
export COLUMNS=80 PYTHONPATH=src

echo '# The commands'
echo
echo 'The output of `starfc --help` and `starfc COMMAND --help`. For a guide see [own-data.md](own-data.md).'
for command in "" cluster assign ask apply undo name explain report review export train evaluate knn tune convert info status task; do
    echo
    echo "## starfc${command:+ $command}"
    echo
    ${PYTHON:-python} -m starfc $command --help | sed 's/^\(.\)/    \1/'
done
