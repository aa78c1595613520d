#!/bin/sh
# Train on MS1M, from any working directory, with NPROC processes (default: one per GPU). Arguments go to train.py.
set -eu
ROOT=$(cd "$(dirname "$0")/.." && pwd)
STARFC_EXTRAS='[plots,tensorboard]'
. "$ROOT/scripts/environment.sh"
CONFIG=$ROOT/configs/cfg_gcn_ms1m.py
. "$ROOT/scripts/launch.sh"
