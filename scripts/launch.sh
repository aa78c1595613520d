# The training scripts source this file after environment.sh, with CONFIG set. It runs train.py with their arguments.
#   NPROC=N           number of processes on this machine (default: one per GPU, or one without a GPU)
#   NNODES=M          number of machines; each runs the same command
#   RDZV=HOST:PORT    a free port on one of the machines, through which they connect
# torchrun starts several processes, each with a share of the cores.

NPROC=${NPROC:-$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))')}
case $NPROC in
    '' | *[!0-9]* | 0) echo "error: NPROC: must be a whole number above 0; found '$NPROC'" >&2; exit 2 ;;
esac
if [ "${NNODES:-1}" = 1 ]; then
    where=--standalone
elif [ -n "${RDZV:-}" ]; then
    where="--nnodes=$NNODES --rdzv-backend=c10d --rdzv-id=starfc --rdzv-endpoint=$RDZV"
else
    echo "error: RDZV: must be HOST:PORT of one of the $NNODES machines; found nothing" >&2
    exit 2
fi
if [ "$NPROC" = 1 ] && [ "${NNODES:-1}" = 1 ]; then
    exec "$PYTHON" "$ROOT/train.py" --config "$CONFIG" "$@"
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # train.py sets its threads itself
# shellcheck disable=SC2086  # $where holds several arguments
exec "$PYTHON" -m torch.distributed.run --nproc-per-node "$NPROC" $where "$ROOT/train.py" --config "$CONFIG" "$@"
