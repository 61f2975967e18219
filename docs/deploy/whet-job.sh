#!/bin/bash
# One run of whet as a job of a cluster: made once, gone on with whenever the job is started again.
#
#   whet-job.sh NOTE RECIPE [KEY=VALUE]...        on each machine of the job
#
# NOTE is a file that remembers which run is this job's. It and WHET_HOME lie on storage that all machines of the
# job see and that outlives them. One machine needs nothing else: whet starts a process for each GPU it plans with.
# Of several machines each is told by NODES, NODE_RANK (from 0), GPUS (of one machine), MASTER_ADDR, MASTER_PORT.
#
# Exit code: 0 finished, or ended by `whet stop`; 5 preempted, start the job again; 1 failed; 3 the export's proof
# failed; 4 findings block the start; 2 wrong usage. SIGTERM saves a checkpoint and ends with 5.
set -u
[ $# -ge 2 ] || { echo "usage: whet-job.sh NOTE RECIPE [KEY=VALUE]..." >&2; exit 2; }
note=$1
shift
nodes=${NODES:-1}
rank=${NODE_RANK:-0}
unset RANK LOCAL_RANK WORLD_SIZE # a launcher's own; the processes of the run get theirs below
export PYTHONSAFEPATH=1          # torchrun would import from the folder it is started in

if [ ! -s "$note" ] && [ "$rank" = 0 ]; then
    [ "$nodes" = 1 ] || set -- "$@" "hardware.machines=$nodes" "hardware.gpus=$((nodes * GPUS))"
    whet train "$@" --no-start > "$note.new" || exit
    mv "$note.new" "$note" # whole or not at all: the other machines wait for it
fi
for _ in $(seq 600); do
    [ -s "$note" ] && break
    sleep 1
done
run=$(cat "$note") || exit 1
id=${run##*/}

status=$(whet show "$id" --json | python -c 'import json, sys; print(json.load(sys.stdin)["status"])') || exit 1
if [ "$status" = finished ]; then # by an earlier start of this job
    whet attach "$id" > /dev/null
    exit
fi

if [ "$nodes" = 1 ]; then
    python -m whet.engine.runs.worker "$run" &
else
    torchrun --nnodes "$nodes" --node-rank "$rank" --nproc-per-node "$GPUS" \
        --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" --max-restarts 0 \
        -m whet.engine.runs.worker "$run" &
fi
worker=$!
trap 'kill -TERM "$worker" 2> /dev/null' TERM INT
wait "$worker" # ends early when a signal is trapped
while kill -0 "$worker" 2> /dev/null; do wait "$worker"; done

whet attach "$id" > /dev/null # how the run stands, as an exit code
code=$?
[ "$code" = 5 ] && [ -n "$(find "$run/control" -name 'stop*')" ] && exit 0 # a person ended it, and may resume it
exit "$code"
