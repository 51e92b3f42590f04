#!/usr/bin/env bash
# Slices of a TPU that are waited for in a queue: spot, reserved, flex-start; one or many at once.
#
# usage: launch/queued_resource.sh [--dry-run] VERB
#   create            join the queue
#   setup             copy the committed code to every worker and install it
#   run -- ARGS       start python -m bottleneck ARGS on every worker; it outlives the ssh
#   logs              follow what worker 0 of slice 0 prints
#   status            of the request, and of the program on every worker
#   stop              end the program, which saves first; the slices stay, and cost
#   drill             a maintenance event on every worker of every slice
#   delete            leave the queue, or give the slices back
#   babysit [--keep] -- ARGS
#       all of it: create, setup, run; after a preemption or a crash once more with the same ARGS,
#       at most RETRIES times (default: 20); until the run is complete. Whatever ends it, Ctrl-C
#       too, the slices are deleted, unless --keep is given. It looks every POLL_SECONDS (60).
#
# Settings stand in launch/env; --dry-run prints the commands instead of running them.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

RETRIES=${RETRIES:-20}
POLL_SECONDS=${POLL_SECONDS:-60}

ssh_workers() {
    run gcloud compute tpus queued-resources ssh "$NAME" "${where[@]}" \
        --node="$([ "$1" = all ] && echo all || echo 0)" --worker="$1" --command="$2"
}

copy_to_workers() {
    run gcloud compute tpus queued-resources scp "$1" "$NAME:" "${where[@]}" \
        --node=all --worker=all
}

create() {
    need_tpu_vm
    local command=(gcloud)
    local how=()
    case $PROVISIONING in
        on-demand) ;;
        spot | reserved) how=("--$PROVISIONING") ;;
        flex-start)
            command+=(alpha) # where these two flags are
            how=(--provisioning-model=flex-start --max-run-duration="$MAX_RUN_DURATION") ;;
        *) die "PROVISIONING=$PROVISIONING must be on-demand, spot, reserved or flex-start" ;;
    esac
    local nodes=(--node-id="$NAME")
    if [ "$SLICES" -gt 1 ]; then nodes=(--node-count="$SLICES" --node-prefix="$NAME"); fi
    command+=(compute tpus queued-resources create "$NAME" "${where[@]}"
        --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME" "${nodes[@]}")
    run "${command[@]}" "${how[@]}"
}

describe() {
    run gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" \
        --format="value(state.state)"
}

status() {
    describe
    worker_status
}

drill() {
    local node workers
    workers=$(seq -s, 0 $((HOSTS - 1)))
    for node in $(node_names); do
        run gcloud alpha compute tpus tpu-vm simulate-maintenance-event "$node" "${where[@]}" \
            --workers="$workers"
    done
}

node_names() {
    if [ "$SLICES" -gt 1 ]; then
        seq -f "$NAME-%g" 0 $((SLICES - 1))
    else
        echo "$NAME"
    fi
}

delete() {
    # --force takes the slices as well, whatever state they are in.
    run gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet
}

# Sets `workdir` to that of a `train`, whose COMPLETE file outlives the slices; else to nothing.
find_workdir() {
    local previous='' argument
    workdir=
    [ "$1" = train ] || return 0
    for argument in "$@"; do
        case $argument in --workdir=*) workdir=${argument#*=} ;; esac
        if [ "$previous" = --workdir ]; then workdir=$argument; fi
        previous=$argument
    done
    [[ $workdir == gs://* ]] || die "--workdir=$workdir must be gs://…, as slices lose their disks"
}

is_complete() {
    [ -n "$workdir" ] && gcloud storage ls "$workdir/COMPLETE" > /dev/null 2>&1
}

note() {
    echo "babysit: $*" >&2
}

trouble() {
    troubles=$((troubles + 1))
    note "$*"
    if [ "$troubles" -gt "$RETRIES" ]; then
        note "giving up after $RETRIES retries"
        exit 1
    fi
}

babysit() {
    local keep='' state
    troubles=0
    if [ "${1-}" = --keep ]; then keep=yes; shift; fi
    [ $# -gt 0 ] || die "say what to run: babysit -- train --config=… --workdir=$BUCKET/…"
    find_workdir "$@"
    if [ -n "$dry_run" ]; then
        echo "# and again, as often as needed, until the run is complete:"
        create
        setup_workers
        run_on_workers "$@"
        [ -n "$keep" ] || delete
        return
    fi
    [ -n "$keep" ] || trap 'note "deleting $NAME"; delete || true' EXIT
    trap 'exit 130' INT TERM
    until is_complete; do
        state=$(describe 2> /dev/null) || state=
        case $state in
            ACTIVE) if tend_program "$@"; then break; fi ;;
            '') note "ordering $NAME"; create || trouble "it could not be ordered" ;;
            FAILED | SUSPENDED)
                trouble "$NAME is $state: preempted, or never had"
                delete || true
                continue ;;
            *) note "$NAME is $state" ;;
        esac
        sleep "$POLL_SECONDS" > /dev/null 2>&1 &
        wait $! # where a signal is heard at once
    done
    note "complete"
}

# Looks after the program on slices that are there; true when it has ended well on every worker.
tend_program() {
    local programs running ended badly
    if ! programs=$(worker_status 2> /dev/null); then
        trouble "a worker cannot be reached"
        return 1
    fi
    running=$(grep -cx running <<< "$programs" || true)
    ended=$(grep -cx 'exit .*' <<< "$programs" || true)
    badly=$(grep -x 'exit .*' <<< "$programs" | grep -cvx 'exit 0' || true)
    if grep -qx 'exit 3' <<< "$programs"; then
        note "giving up: training has diverged, and would again; see diagnosis.json in its folder"
        exit 3
    fi
    if [ "$badly" -gt 0 ]; then
        trouble "the program ended on $badly worker(s): $(sort <<< "$programs" | uniq -c | xargs)"
        if [ "$running" -gt 0 ]; then stop_workers || true; fi # they would wait for ever
    elif [ "$running" -gt 0 ]; then
        return 1
    elif [ "$ended" -gt 0 ]; then
        return 0
    fi
    if ! { setup_workers && run_on_workers "$@"; }; then trouble "it could not be started"; fi
    return 1
}

parse "$@"
load_settings PROJECT ZONE BUCKET NAME ACCELERATOR SLICES PROVISIONING MAX_RUN_DURATION
load_slice
where=(--project="$PROJECT" --zone="$ZONE")
case $verb in
    create | status | drill | delete) "$verb" ;;
    setup) setup_workers ;;
    run) run_on_workers "${arguments[@]}" ;;
    logs) show_logs ;;
    stop) stop_workers ;;
    babysit) babysit "${arguments[@]}" ;;
    *) die "$verb is no verb; see --help" ;;
esac
