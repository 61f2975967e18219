#!/bin/bash
# Object storage: WHET_HOME lies on the machine's own disk and is copied to and from a bucket around a command.
#
#   whet-sync.sh BUCKET COMMAND [ARGUMENT]...
#
# BUCKET is where COPY copies to: a folder that a bucket is mounted at, with the default `cp -ruT`, or an address with
# COPY="aws s3 sync" or COPY="rclone copy". A checkpoint that is only half there when the machine is taken does not
# count: its manifest is missing, or names other sizes, and the run goes on from the one before.
set -u
[ $# -ge 2 ] || { echo "usage: whet-sync.sh BUCKET COMMAND [ARGUMENT]..." >&2; exit 2; }
bucket=${1%/}/ # not /. behind it: in an object store that is a name
shift
copy=${COPY:-cp -ruT}
every=${EVERY:-300} # seconds between copies: what a lost machine costs at most, beside the checkpoint interval

mkdir -p "$WHET_HOME"
$copy "$bucket" "$WHET_HOME/" || exit 1

"$@" &
command=$!
trap 'kill -TERM "$command" 2> /dev/null' TERM INT
(
    trap 'kill "$nap" 2> /dev/null; exit' TERM
    while true; do
        sleep "$every" &
        nap=$!
        wait "$nap"
        $copy "$WHET_HOME/" "$bucket"
    done
) &
copies=$!
wait "$command"
code=$?
while kill -0 "$command" 2> /dev/null; do
    wait "$command"
    code=$?
done
kill "$copies" 2> /dev/null
wait "$copies" # not two copies at once
$copy "$WHET_HOME/" "$bucket" # the checkpoint that SIGTERM asked for
exit "$code"
