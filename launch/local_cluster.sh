#!/usr/bin/env bash
# Several processes on this machine that train as one, by the code that a cluster runs.
#
# usage: launch/local_cluster.sh [--dry-run] N -- ARGS
#   starts python -m bottleneck ARGS N times, ARGS being a train or a sweep --index=I, and says
#   which is which at the head of each line; if one fails, the others are ended.
#
# PYTHON chooses the interpreter, PORT where process 0 listens. On CPUs each process is one device
# unless XLA_FLAGS says otherwise.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "$@"
count=$verb
[[ $count =~ ^[1-9][0-9]*$ ]] || die "$count is no number of processes; see --help"
[ ${#arguments[@]} -gt 0 ] || die "say what to run: $count -- train --config=… --workdir=…"
python=${PYTHON:-$repository/.venv/bin/python}
free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
port=${PORT:-$("$python" -c "$free_port")}

processes=()
# A shell that has just been forked may lose a signal, so it is sent until none of them is left.
trap 'while kill "${processes[@]}" 2> /dev/null; do sleep 0.2; done' EXIT
trap 'exit 130' INT TERM
for ((index = 0; index < count; index++)); do
    command=(env PYTHONUNBUFFERED=1 "$python" -m bottleneck "${arguments[@]}"
        --coordinator="127.0.0.1:$port" --processes="$count" --process="$index")
    if [ -n "$dry_run" ]; then
        run "${command[@]}"
    else
        "${command[@]}" > >(sed -u "s/^/[$index] /") 2>&1 &
        processes+=($!)
    fi
done
for _ in "${processes[@]}"; do
    if ! wait -n; then
        echo "a process failed; ending the others" >&2
        exit 1
    fi
done
