#!/bin/sh
# Train the hierarchical model on MS1M, from any working directory, with NPROC processes (default: one per GPU).
set -eu
ROOT=$(cd "$(dirname "$0")/.." && pwd)
CONFIG=$ROOT/configs/cfg_gcn_ms1m_hierarchical.py

usage() {
    cat <<'EOF'
usage: [NPROC=N] sh scripts/train_gcn_ms1m_hierarchical.sh [K_MID [K_NUM3]] [ARGUMENTS OF train.py]

  K_MID    neighbours of the middle graph (default: hierarchical.k_mid of the config, 100; the default of the published
           command line was 60)
  K_NUM3   no effect: the published code reads it but does not use it
  NPROC    number of processes (default: one per GPU); NNODES and RDZV=HOST:PORT for several machines (docs/training.md)

Further arguments go to train.py, such as --work-dir DIR, --resume auto, --config FILE, --cfg-options KEY=VALUE ...
EOF
}

number() {
    case ${1:-} in '' | *[!0-9]*) return 1 ;; esac
}

k_mid=
if number "${1:-}"; then
    k_mid=$1
    shift
    if number "${1:-}"; then
        echo "K_NUM3=$1 has no effect" >&2
        shift
    fi
fi
for argument in "$@"; do
    case $argument in -h | --help) usage; exit 0 ;; esac
done
case ${1:-} in '' | -*) ;; *) echo "error: K_MID: must be a whole number; found '$1'" >&2; usage >&2; exit 2 ;; esac

STARFC_EXTRAS='[plots,tensorboard]'
. "$ROOT/scripts/environment.sh"
if [ -n "$k_mid" ]; then
    set -- "$@" --cfg-options "hierarchical.k_mid=$k_mid"
fi
. "$ROOT/scripts/launch.sh"
