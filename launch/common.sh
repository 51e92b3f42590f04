# shellcheck shell=bash
# Sourced by the scripts beside it: --help, --dry-run, settings, the table of slices, and what is
# done on the workers of a TPU whichever way it was ordered.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(dirname "$here")
dry_run=

die() {
    echo "error: $*" >&2
    exit 2
}

# The comment at the head of a script is its help.
usage() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$here/$(basename "$0")"
}

# Runs a command, or with --dry-run prints it as it could be typed.
run() {
    if [ -n "$dry_run" ]; then
        quoted "$@"
    else
        "$@"
    fi
}

# The words as a shell reads them back; those that need it stand in single quotes.
quoted() {
    local line='' word
    for word in "$@"; do
        if [[ ! $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then word="'${word//\'/\'\\\'\'}'"; fi
        line+=" $word"
    done
    printf '%s\n' "${line# }"
}

# Sets `verb` and `arguments`, what follows the verb; takes --help and --dry-run out before a "--".
parse() {
    verb=
    arguments=()
    while [ $# -gt 0 ]; do
        case $1 in
            --help | -h) usage; exit 0 ;;
            --dry-run) dry_run=yes ;;
            --) shift; arguments+=("$@"); break ;;
            -*) arguments+=("$1") ;;
            *) if [ -z "$verb" ]; then verb=$1; else arguments+=("$1"); fi ;;
        esac
        shift
    done
    if [ -z "$verb" ]; then usage >&2; exit 2; fi
}

load_settings() {
    local file=${LAUNCH_ENV:-$here/env} name
    [ -f "$file" ] || die "there is no $file; copy $here/env.example to it and fill it in"
    # shellcheck source=/dev/null
    . "$file"
    for name in "$@"; do
        [ -n "${!name-}" ] || die "$name is not set in $file"
    done
}

# Sets HOSTS, ACCELERATOR_TYPE, RUNTIME and so on from the one table.
load_slice() {
    local python=python3 row
    if [ -x "$repository/.venv/bin/python" ]; then python=$repository/.venv/bin/python; fi
    row=$(PYTHONPATH=$repository "$python" -m bottleneck.parallel.slices \
        "$ACCELERATOR" "${SLICES:-1}") || exit 2
    eval "$row"
}

need_tpu_vm() {
    [ -n "$RUNTIME" ] || die "there are no TPU VMs of $CHIP; use launch/gke.sh"
}

# What follows needs `ssh_workers WORKERS COMMAND` and `copy_to_workers FILE` of the script.

worker_script='bottleneck/launch/on_worker.sh'

# The committed state of the repository, on every worker, with an environment of its own.
setup_workers() {
    # shellcheck disable=SC2153 # NAME is one of the settings
    local archive=${TMPDIR:-/tmp}/$NAME.tar.gz
    run git -C "$repository" archive --format=tar.gz --output="$archive" HEAD
    copy_to_workers "$archive"
    ssh_workers all "mkdir -p bottleneck && tar -xzf $(quoted "$NAME.tar.gz") -C bottleneck && \
$worker_script setup"
    run rm -f "$archive"
}

# Starts the program on every worker. Where one fails, the others would wait for it for ever.
run_on_workers() {
    [ $# -gt 0 ] || die "say what to run: run -- train --config=… --workdir=$BUCKET/…"
    if ! ssh_workers all "$(quoted "$worker_script" start "$ACCELERATOR" "${SLICES:-1}" -- "$@")"; then
        echo "a worker did not start; stopping the others" >&2
        stop_workers || true
        return 1
    fi
}

stop_workers() {
    ssh_workers all "$worker_script stop"
}

worker_status() {
    ssh_workers all "if [ -x $worker_script ]; then $worker_script status; else echo not set up; fi"
}

show_logs() {
    ssh_workers 0 "tail -n 100 -F bottleneck/launch.log"
}
