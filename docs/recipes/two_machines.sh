#!/usr/bin/env bash
# One training on two machines, each with `ys`, the same torch, and the same text at the same path.
#
#   FIRST=10.0.0.1 bash two_machines.sh 0 --run mine --data my_texts      on the first machine
#   FIRST=10.0.0.1 bash two_machines.sh 1 --run mine --data my_texts      on the second
#
# The run's folder is on the first. A process that dies is replaced; Ctrl-C on either saves and stops.
set -eu
number=$1
shift
exec torchrun --nnodes="${MACHINES:-2}" --node-rank="$number" --nproc_per_node="${GPUS:-8}" \
    --master-addr="$FIRST" --master-port="${PORT:-29400}" --max-restarts=3 --shutdown-timeout=120 \
    -m -- ys_llm train "$@"
