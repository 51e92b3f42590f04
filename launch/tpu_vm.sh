#!/usr/bin/env bash
# One slice of a TPU, ordered now and kept until it is deleted: for trying things out.
#
# usage: launch/tpu_vm.sh [--dry-run] VERB
#   create            order it
#   setup             copy the committed code to every worker and install it
#   run -- ARGS       start python -m bottleneck ARGS on every worker; it outlives the ssh
#   logs              follow what worker 0 prints
#   status            of the slice, and of the program on every worker
#   stop              end the program, which saves first; the slice stays, and costs
#   drill             a maintenance event on every worker, as Google would announce it
#   delete            give the slice back
#
# Settings stand in launch/env; --dry-run prints the commands instead of running them.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ssh_workers() {
    run gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker="$1" --command="$2"
}

copy_to_workers() {
    run gcloud compute tpus tpu-vm scp "$1" "$NAME:" "${where[@]}" --worker=all
}

create() {
    need_tpu_vm
    local command=(gcloud)
    local how=()
    case $PROVISIONING in
        on-demand) ;;
        spot | reserved) how=("--$PROVISIONING") ;;
        *) die "PROVISIONING=$PROVISIONING is not for TPU VMs; use launch/queued_resource.sh" ;;
    esac
    command+=(compute tpus tpu-vm create "$NAME" "${where[@]}"
        --accelerator-type="$ACCELERATOR_TYPE" --version="$RUNTIME" "${how[@]}")
    run "${command[@]}"
}

status() {
    run gcloud compute tpus tpu-vm describe "$NAME" "${where[@]}" --format="value(state,health)"
    worker_status
}

drill() {
    local workers
    workers=$(seq -s, 0 $((HOSTS - 1)))
    run gcloud alpha compute tpus tpu-vm simulate-maintenance-event "$NAME" "${where[@]}" \
        --workers="$workers"
}

delete() {
    run gcloud compute tpus tpu-vm delete "$NAME" "${where[@]}" --quiet
}

parse "$@"
load_settings PROJECT ZONE NAME ACCELERATOR PROVISIONING
export SLICES=1
load_slice
where=(--project="$PROJECT" --zone="$ZONE")
case $verb in
    create | status | drill | delete) "$verb" ;;
    setup) setup_workers ;;
    run) run_on_workers "${arguments[@]}" ;;
    logs) show_logs ;;
    stop) stop_workers ;;
    *) die "$verb is no verb; see --help" ;;
esac
