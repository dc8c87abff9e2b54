#!/usr/bin/env bash
# The lighthouse of replicas that come and go, started again where it ends: bash lighthouse.sh
# It knows no password: in a private network only.
set -u
trap 'kill "$lighthouse"; exit 143' TERM INT
while true; do
    torchft_lighthouse --bind "[::]:${PORT:-29510}" --min_replicas 1 --join_timeout_ms 10000 &
    lighthouse=$!
    wait "$lighthouse"
    sleep 5
done
