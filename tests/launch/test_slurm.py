"""slurm.sbatch: what it submits, and what the job runs."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
JOB = {"SLURM_JOB_ID": "77", "SLURM_SUBMIT_DIR": str(ROOT)}
SRUN = ["srun", "--kill-on-bad-exit=1", "env", "PYTHONUNBUFFERED=1", ".venv/bin/python"]
TRAIN = ["train", "--config=configs/nano.py", "--workdir=/shared/a run"]


def test_it_submits_itself_with_the_flags_before_the_dashes(machine):
    machine.run("slurm.sbatch", "--nodes=2", "--comment=two words", "--", *TRAIN)
    flags = ["--nodes=2", "--comment=two words"]
    assert machine.calls == [["sbatch", *flags, "launch/slurm.sbatch", *TRAIN]]


def test_a_sweep_is_an_array_with_an_element_for_each_cell(machine):
    sweep = ["sweep", "--config=configs/head_rank.py", "--workdir=/shared/hr"]
    machine.run("slurm.sbatch", "--", *sweep)
    machine.run("slurm.sbatch", "--array=3-5%2", "--", *sweep)
    assert machine.calls == [
        ["sbatch", "--array=0-17", "launch/slurm.sbatch", *sweep],
        ["sbatch", "--array=3-5%2", "launch/slurm.sbatch", *sweep],
    ]


def test_the_job_runs_a_task_a_gpu_and_an_element_of_an_array_its_cell(machine):
    machine.run("slurm.sbatch", *TRAIN, **JOB)
    machine.run("slurm.sbatch", "sweep", "--workdir=/s", SLURM_ARRAY_TASK_ID="4", **JOB)
    assert machine.calls == [
        [*SRUN, "-m", "bottleneck", *TRAIN],
        [*SRUN, "-m", "bottleneck", "sweep", "--workdir=/s", "--index=4"],
    ]
    lines = re.findall(r"^#SBATCH --(\S+)=(\S+)$", (ROOT / "launch/slurm.sbatch").read_text(), re.M)
    asked = dict(lines)
    assert asked["gpus-per-node"] == asked["ntasks-per-node"]
    assert asked["signal"].startswith("TERM@")  # to the tasks, not to the script


def test_a_run_that_was_told_to_end_is_queued_again_and_one_that_failed_is_not(machine):
    machine.answer(("srun", "", 143, 1), ("srun", "", 1, 1))
    machine.run("slurm.sbatch", *TRAIN, code=143, **JOB)
    assert machine.calls[1:] == [["scontrol", "requeue", "77"]]
    machine.run("slurm.sbatch", *TRAIN, code=1, **JOB)
    assert len(machine.calls) == 3


def test_directives_stand_where_sbatch_reads_them():
    text = (ROOT / "launch/slurm.sbatch").read_text()
    head = text.partition("\nset -euo")[0]
    assert all(line.startswith("#") or not line for line in head.splitlines())
    assert text.count("#SBATCH") == head.count("#SBATCH") > 5
