"""tpu_vm.sh and queued_resource.sh: the exact command line of each verb, and what failures do."""

import shlex

import pytest

WHERE = ["--project=my project", "--zone=us-west4-a"]
VM = ["gcloud", "compute", "tpus", "tpu-vm"]
QR = ["gcloud", "compute", "tpus", "queued-resources"]
STATUS = (
    "if [ -x bottleneck/launch/on_worker.sh ]; then bottleneck/launch/on_worker.sh status; "
    "else echo not set up; fi"
)
SETUP = (
    "mkdir -p bottleneck && tar -xzf mine.tar.gz -C bottleneck && "
    "bottleneck/launch/on_worker.sh setup"
)
ARGUMENTS = ["train", "--config=configs/pythia.py:160m", "--config.data.paths=/my data/it's $HOME"]
START = (
    "bottleneck/launch/on_worker.sh start v5e:4x4 {slices} -- train "
    "--config=configs/pythia.py:160m '--config.data.paths=/my data/it'\\''s $HOME'"
)
FOLLOW = "tail -n 100 -F bottleneck/launch.log"


def vm(verb, *more):
    return [[*VM, verb, "mine", *WHERE, *more]]


def qr(verb, *more):
    return [[*QR, verb, "mine", *WHERE, *more]]


def drill(node, workers="0,1,2,3"):
    command = ["gcloud", "alpha", "compute", "tpus", "tpu-vm", "simulate-maintenance-event"]
    return [*command, node, *WHERE, f"--workers={workers}"]


V5E_16 = ("--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite")
QUEUED = ("--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite")
ALL = ("--node=all", "--worker=all")


@pytest.mark.parametrize(
    ("verb", "settings", "expected"),
    [
        ("create", {}, vm("create", *V5E_16, "--spot")),
        ("create", {"PROVISIONING": "on-demand"}, vm("create", *V5E_16)),
        (
            "create",
            {"PROVISIONING": "reserved", "ACCELERATOR": "v5p:2x2x2"},
            vm("create", "--accelerator-type=v5p-16", "--version=v2-alpha-tpuv5", "--reserved"),
        ),
        ("logs", {}, vm("ssh", "--worker=0", f"--command={FOLLOW}")),
        (
            "status",
            {},
            vm("describe", "--format=value(state,health)")
            + vm("ssh", "--worker=all", f"--command={STATUS}"),
        ),
        (
            "stop",
            {},
            vm("ssh", "--worker=all", "--command=bottleneck/launch/on_worker.sh stop"),
        ),
        ("drill", {}, [drill("mine")]),
        ("delete", {}, vm("delete", "--quiet")),
    ],
)
def test_verbs_of_tpu_vm(machine, verb, settings, expected):
    machine.run("tpu_vm.sh", verb, **settings)
    assert machine.calls == expected


@pytest.mark.parametrize(
    ("verb", "settings", "expected"),
    [
        ("create", {}, qr("create", *QUEUED, "--node-id=mine", "--spot")),
        (
            "create",
            {"SLICES": "2", "PROVISIONING": "reserved"},
            qr("create", *QUEUED, "--node-count=2", "--node-prefix=mine", "--reserved"),
        ),
        (
            "create",
            {"PROVISIONING": "flex-start", "MAX_RUN_DURATION": "3h"},
            [
                [
                    *("gcloud", "alpha", *QR[1:], "create", "mine", *WHERE, *QUEUED),
                    *("--node-id=mine", "--provisioning-model=flex-start"),
                    "--max-run-duration=3h",
                ]
            ],
        ),
        ("logs", {}, qr("ssh", "--node=0", "--worker=0", f"--command={FOLLOW}")),
        (
            "status",
            {},
            qr("describe", "--format=value(state.state)") + qr("ssh", *ALL, f"--command={STATUS}"),
        ),
        ("stop", {}, qr("ssh", *ALL, "--command=bottleneck/launch/on_worker.sh stop")),
        ("drill", {"ACCELERATOR": "v5e:4x8"}, [drill("mine", "0,1,2,3,4,5,6,7")]),
        ("drill", {"SLICES": "2"}, [drill("mine-0"), drill("mine-1")]),
        ("delete", {}, qr("delete", "--force", "--quiet")),
    ],
)
def test_verbs_of_queued_resource(machine, verb, settings, expected):
    machine.run("queued_resource.sh", verb, **settings)
    assert machine.calls == expected


@pytest.mark.parametrize(
    ("script", "command", "to_all", "slices"),
    [
        ("tpu_vm.sh", vm, ["--worker=all"], "1"),
        ("queued_resource.sh", qr, list(ALL), "3"),
    ],
)
def test_code_goes_to_every_worker_and_arguments_arrive_as_they_were(
    machine, script, command, to_all, slices
):
    machine.run(script, "setup", SLICES=slices)
    machine.run(script, "run", "--", *ARGUMENTS, SLICES=slices)
    copy, install, start = machine.calls
    where = [*WHERE, *to_all]
    assert copy[4:] == ["scp", f"{machine.folder}/mine.tar.gz", "mine:", *where]
    assert [install] == command("ssh", *to_all, f"--command={SETUP}")
    assert [start] == command("ssh", *to_all, f"--command={START.format(slices=slices)}")
    remote = start[-1].partition("=")[2]
    assert shlex.split(remote)[-3:] == ARGUMENTS  # as the worker's shell takes it apart
    assert not (machine.folder / "mine.tar.gz").exists()


def test_one_worker_that_does_not_start_stops_the_others(machine):
    machine.answer(("start", "", 1, 1))
    _, errors = machine.run("tpu_vm.sh", "run", "--", "train", code=1)
    assert "a worker did not start; stopping the others" in errors
    assert machine.calls[-1][-1] == "--command=bottleneck/launch/on_worker.sh stop"


def test_one_worker_that_cannot_be_set_up_is_an_error(machine):
    machine.answer(("on_worker.sh setup", "", 1, 1))
    machine.run("queued_resource.sh", "setup", code=1)


@pytest.mark.parametrize(
    ("script", "verb", "settings", "message"),
    [
        ("tpu_vm.sh", "start", {}, "start is no verb"),
        ("tpu_vm.sh", "create", {"PROJECT": ""}, "PROJECT is not set"),
        ("tpu_vm.sh", "create", {"ACCELERATOR": "v5e:3x3"}, "no topology '3x3' of v5e"),
        ("tpu_vm.sh", "create", {"ACCELERATOR": "v9:2x2"}, "no chip 'v9'"),
        ("tpu_vm.sh", "create", {"ACCELERATOR": "tpu7x:2x2x1"}, "use launch/gke.sh"),
        ("tpu_vm.sh", "create", {"PROVISIONING": "flex-start"}, "use launch/queued_resource.sh"),
        ("tpu_vm.sh", "run", {}, "say what to run"),
        ("queued_resource.sh", "create", {"PROVISIONING": "cheap"}, "must be on-demand, spot"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_called(machine, script, verb, settings, message):
    _, errors = machine.run(script, verb, code=2, **settings)
    assert message in errors and errors.count("\n") == 1
    assert machine.calls == []


def test_settings_that_are_missing_say_where_to_begin(machine):
    (machine.folder / "env").unlink()
    _, errors = machine.run("tpu_vm.sh", "status", code=2)
    assert "copy" in errors and "env.example" in errors
