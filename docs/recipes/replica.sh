#!/usr/bin/env bash
# A replica of a training, on as many machines as there are, each with a run of its own:
#
#   LIGHTHOUSE=10.0.0.1 bash replica.sh --run "$(hostname)" --data my_texts --set data.batching=shuffled
#
# It is started again where it dies or the lighthouse is away, and is then given the weights of another.
set -u
while true; do
    ys train --elastic "$LIGHTHOUSE" "$@"
    code=$?
    case $code in
        0 | 2 | 5 | 130 | 143) exit "$code" ;; # done, a mistake, diverged, stopped
    esac
    sleep "${PAUSE:-10}"
done
