# Sourced by the training scripts after environment.sh, with CONFIG set: runs train.py on the arguments given.
#   NPROC=N           processes on this machine (default: one per GPU, one where there is none)
#   NNODES=M          machines; each runs the same command
#   RDZV=HOST:PORT    where they meet: a free port on one of them
# More than one process is started by torchrun, with a share of the cores each.

NPROC=${NPROC:-$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))')}
case $NPROC in
    '' | *[!0-9]* | 0) echo "error: NPROC: a whole number above 0 needed; found '$NPROC'" >&2; exit 2 ;;
esac
if [ "${NNODES:-1}" = 1 ]; then
    where=--standalone
elif [ -n "${RDZV:-}" ]; then
    where="--nnodes=$NNODES --rdzv-backend=c10d --rdzv-id=starfc --rdzv-endpoint=$RDZV"
else
    echo "error: RDZV: HOST:PORT of one of the $NNODES machines needed; found nothing" >&2
    exit 2
fi
if [ "$NPROC" = 1 ] && [ "${NNODES:-1}" = 1 ]; then
    exec "$PYTHON" "$ROOT/train.py" --config "$CONFIG" "$@"
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # train.py sets its threads itself
# shellcheck disable=SC2086  # $where holds several arguments
exec "$PYTHON" -m torch.distributed.run --nproc-per-node "$NPROC" $where "$ROOT/train.py" --config "$CONFIG" "$@"
