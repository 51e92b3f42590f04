#!/usr/bin/env bash
# Runs the program on one worker of a TPU; the other scripts call it there, over ssh.
#
# usage: launch/on_worker.sh [--dry-run] VERB
#   setup                                 make the environment
#   start CHIP:TOPOLOGY SLICES -- ARGS    start python -m bottleneck ARGS, which outlives the ssh
#   status                                running, exit CODE, or not started
#   stop                                  SIGTERM, on which a run saves and ends; then SIGKILL
#
# Beside launch/ it keeps launch.log, launch.pid and launch.exit.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR source=common.sh
. launch/common.sh

STOP_SECONDS=${STOP_SECONDS:-240}

is_running() {
    # Its name as well, as a machine that was started anew numbers its processes anew.
    [ -f launch.pid ] && grep -qsa bottleneck "/proc/$(cat launch.pid)/cmdline"
}

setup() {
    # The image's own Python may be too old; uv brings one.
    run python3 -m pip install --quiet --user uv
    run "$HOME/.local/bin/uv" venv --quiet --allow-existing --python 3.12 .venv
    run "$HOME/.local/bin/uv" pip install --quiet --python .venv/bin/python --editable '.[tpu,gcs]'
}

start() {
    [ $# -ge 3 ] || die "start needs CHIP:TOPOLOGY, SLICES and what to run"
    ACCELERATOR=$1 SLICES=$2
    shift 2
    load_slice
    if is_running; then
        echo "running already, as process $(cat launch.pid)"
        return
    fi
    # Unbuffered, or the log of a program that was killed would lack its last lines.
    local command=(env PYTHONUNBUFFERED=1 "LIBTPU_INIT_ARGS=$LIBTPU_FLAGS"
        .venv/bin/python -m bottleneck "$@")
    if [ -n "$dry_run" ]; then
        run "${command[@]}"
        return
    fi
    rm -f launch.exit launch.pid
    # shellcheck disable=SC2016 # the inner shell expands it
    nohup bash -c '
        "$@" &
        echo $! > launch.pid.draft && mv launch.pid.draft launch.pid
        code=0
        wait $! || code=$?
        echo $code > launch.exit
    ' on_worker "${command[@]}" > launch.log 2>&1 < /dev/null &
    until [ -f launch.pid ]; do sleep 0.05; done
    echo "started, as process $(cat launch.pid)"
}

status() {
    if is_running; then
        echo running
    elif [ -f launch.exit ]; then
        echo "exit $(cat launch.exit)"
    elif [ -f launch.pid ]; then
        echo "exit unknown"
    else
        echo "not started"
    fi
}

stop() {
    local deadline=$((SECONDS + STOP_SECONDS))
    if ! is_running; then
        status
        return
    fi
    run kill -TERM "$(cat launch.pid)"
    [ -z "$dry_run" ] || return 0
    while is_running; do
        if [ $SECONDS -ge $deadline ]; then
            kill -KILL "$(cat launch.pid)"
        fi
        sleep 0.2
    done
    echo stopped
}

parse "$@"
case $verb in
    setup | status | stop) "$verb" ;;
    start) start "${arguments[@]}" ;;
    *) die "$verb is no verb; see --help" ;;
esac
