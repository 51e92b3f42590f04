#!/usr/bin/env bash
# A JobSet on GKE: one pod a host of every TPU slice, or one a GPU node.
#
# usage: launch/gke.sh [--dry-run] VERB
#   render KIND -- ARGS    print the manifest of python -m bottleneck ARGS; KIND is tpu or gpu
#   apply KIND -- ARGS     hand it to the cluster; a pod that is lost starts all anew, which continue
#   status                 of the JobSet and its pods
#   logs                   follow what the first pod prints
#   delete                 end it: the run saves first
#
# The cluster is the one that kubectl is set to, with JobSet installed:
#   gcloud container clusters get-credentials CLUSTER --location=ZONE
# Settings stand in launch/env; --dry-run prints the commands instead of running them.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

render() {
    local kind=${1-}
    [ "$kind" = tpu ] || [ "$kind" = gpu ] || die "say which: $verb tpu -- ARGS, or $verb gpu -- ARGS"
    shift
    [ $# -gt 0 ] || die "say what to run: $verb $kind -- train --config=… --workdir=gs://…"
    load_slice
    export NAME IMAGE PROVISIONING SLICES NODES GPU GPUS_PER_NODE
    export TOPOLOGY HOSTS CHIPS_PER_HOST GKE_ACCELERATOR LIBTPU_FLAGS
    python3 "$here/gke/render.py" "$here/gke/$kind.yaml" "$@"
}

apply() {
    local manifest
    if [ -n "$dry_run" ]; then
        echo "launch/gke.sh render $(quoted "$1" -- "${@:2}") | kubectl apply --filename=-"
        return
    fi
    manifest=$(render "$@")
    kubectl apply --filename=- <<< "$manifest"
}

parse "$@"
load_settings NAME IMAGE ACCELERATOR SLICES PROVISIONING NODES GPU GPUS_PER_NODE
pods="--selector=jobset.sigs.k8s.io/jobset-name=$NAME"
case $verb in
    render | apply) "$verb" "${arguments[@]}" ;;
    status) run kubectl get "jobset/$NAME" && run kubectl get pods "$pods" --output=wide ;;
    logs) run kubectl logs --follow --tail=100 "job/$NAME-workers-0" ;;
    delete) run kubectl delete "jobset/$NAME" ;;
    *) die "$verb is no verb; see --help" ;;
esac
