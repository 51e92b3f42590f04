"""Devices, processes and clocks that change under a run, and two processes that want one folder."""

import shutil
import signal
import socket
import subprocess
from contextlib import ExitStack

import jax
import numpy as np
import pytest
from processes import HANGING, await_moment, is_in_use

from bottleneck import runs
from bottleneck.runs.seals import seal

# Losses are near 5.7 and float32 sums of 256 tokens are taken in another order: each step may err
# by some 1e-6, and 60 steps add up.
TOLERANCE = 2e-4


def devices(n):
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={n}"}


def mesh(replica, fsdp, tensor):
    sizes = {"replica": replica, "fsdp": fsdp, "tensor": tensor}
    return [f"--config.compute.mesh.{name}={size}" for name, size in sizes.items()]


# Each part of the run on other devices, laid out in another way.
WORLDS = [
    [(8, (2, 2, 2)), (4, (1, 2, 2)), (1, (1, 1, 1))],
    [(4, (1, 4, 1)), (8, (1, 8, 1)), (2, (2, 1, 1))],
    [(1, (1, 1, 1)), (8, (4, 1, 2)), (4, (4, 1, 1))],
    [(2, (1, 1, 2)), (1, (1, 1, 1)), (8, (1, 4, 2))],
    [(8, (8, 1, 1)), (2, (1, 2, 1)), (4, (1, 1, 4))],
]


def test_a_world_that_changes_its_shape(faults, lab, undisturbed, tmp_path):
    def trial(index):
        workdir, parts = (
            tmp_path / f"run-{index}",
            tuple(zip((15, 35, None), WORLDS[index], strict=True)),
        )
        for until, (n, sizes) in parts if faults.IS_FULL else (parts[0], parts[2]):
            training = lab.training(*mesh(*sizes), **devices(n))
            if until is None:
                training.finish(workdir)
                break
            is_reached = lambda goal=until: faults.last_step(workdir) >= goal  # noqa: E731
            training.kill(workdir, is_reached, delay=0.1)
        faults.assert_same_run(workdir, undisturbed, tolerance=TOLERANCE)
        return None

    claim = f"8, 4, 2, 1 devices, other meshes: losses and parameters within {TOLERANCE}"
    faults.run_trials("killed, and other devices go on", claim, trial, full=len(WORLDS))


def test_a_checkpoint_of_a_pod_is_read_on_a_cpu(faults, undisturbed, tmp_path):
    def trial(index):
        """The layout on record names devices that are not here."""
        workdir = tmp_path / f"run-{index}"
        shutil.copytree(undisturbed, workdir)
        item = workdir / "checkpoints" / "60" / "params"
        layout = (item / "_sharding").read_text()
        assert "TFRT_CPU_0" in layout or '\\"id\\": 0' in layout, layout
        elsewhere = layout.replace("TFRT_CPU_0", "TPU_77(process=9,(7,7,0,0))")
        (item / "_sharding").write_text(elsewhere.replace('\\"id\\": 0', '\\"id\\": 777'))
        seal(item)
        ours, theirs = (runs.load(folder).params(60) for folder in (workdir, undisturbed))
        for a, b in zip(*(jax.tree.leaves(params) for params in (ours, theirs)), strict=True):
            np.testing.assert_array_equal(a, b)
        return None

    claim = "analysis reads the same parameters, on the first CPU"
    faults.run_trials("checkpoint of devices that are not here", claim, trial, full=1)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_one_of_several_processes_is_lost(faults, lab, undisturbed, tmp_path):
    source, n = faults.source(), 4 if faults.IS_FULL else 2

    def trial(index):
        # Process 0 is the one that the others know, so the quick set kills another.
        workdir, victim = tmp_path / f"run-{index}", (index + 1) % n
        goal = source.randrange(1, 50) if faults.IS_FULL else 10
        address = f"--coordinator=127.0.0.1:{free_port()}"
        with ExitStack() as stack:
            processes = []
            for i in range(n):
                training = lab.training(address, f"--processes={n}", f"--process={i}")
                processes.append(training.start(workdir))
                stack.callback(processes[-1].kill)
            await_moment(lambda: faults.last_step(workdir) >= goal, processes[victim])
            processes[victim].send_signal(signal.SIGKILL)
            for i, process in enumerate(processes):
                output, _ = process.communicate(timeout=HANGING)
                if i == victim:
                    continue
                if process.returncode == 4:
                    assert f"error: process {i} of {n} has lost another and ends" in output
                    assert "Traceback" not in output, output
                else:  # at a barrier of jax's own service, which ends it when a heartbeat is missed
                    assert process.returncode == -signal.SIGABRT, output
                    assert "another task died" in output
        steps = faults.last_step(workdir) - max(faults.saved_steps(workdir), default=0)
        lab.training().finish(workdir)
        faults.assert_same_run(workdir, undisturbed, tolerance=TOLERANCE)
        return f"{steps} steps"

    claim = "the others end and say why; one process goes on"
    faults.run_trials(f"one of {n} processes killed", claim, trial, full=4)


def test_two_processes_on_one_folder(faults, lab, undisturbed, tmp_path):
    source = faults.source()

    def trial(index):
        workdir, goal = tmp_path / f"run-{index}", source.randrange(-1, 30)
        first = lab.training().start(workdir)
        is_at_work = lambda: is_in_use(workdir) and faults.last_step(workdir) >= goal  # noqa: E731
        await_moment(is_at_work, first)
        first.send_signal(signal.SIGSTOP)  # so that it is not done before the second has begun
        try:
            output = lab.training().finish(workdir, code=2)
        finally:
            first.send_signal(signal.SIGCONT)
            first.communicate(timeout=HANGING)
        assert f"--workdir={workdir} is in use by process {first.pid} on " in output
        assert first.returncode == 0
        faults.assert_same_run(workdir, undisturbed)
        return None

    claim = "the second refuses and names the first, which ends bit-identical"
    faults.run_trials("two processes on one folder", claim, trial, full=5)


# Twice in a second the calendar is set to another hour, of today or of another year.
JUMPING_CLOCK = """
import random, time
def now(real=time.time, since=time.monotonic):
    source = random.Random({seed} + int(2 * since()))
    return real() + source.uniform(-3e4, 3e4) * source.choice((1, 1, 1, 1000))
time.time, time.time_ns = now, lambda: int(now() * 1e9)
"""


def test_a_clock_that_jumps(faults, lab, undisturbed, tmp_path):
    source = faults.source()

    def trial(index):
        workdir, goal = tmp_path / f"run-{index}", source.randrange(0, 50)
        jumping = lab.training(prelude=JUMPING_CLOCK.format(seed=index))
        # It ends by itself, with 2, after a jump of more than a day in the middle of a save.
        jumping.kill(workdir, lambda: faults.last_step(workdir) >= goal, codes=(0, 2))
        for _ in range(10):  # as a scheduler would
            process = jumping.start(workdir)
            output, _ = process.communicate(timeout=HANGING)
            if process.returncode == 0:
                break
            assert process.returncode == 2 and "the clock of this machine was set" in output, output
        faults.assert_same_run(workdir, undisturbed)
        for record in runs.load(workdir).split("train").iter_rows(named=True):
            assert record["tokens_per_second"] > 0
        return None

    claim = "by hours and by years, and a SIGKILL: started again, it ends bit-identical"
    faults.run_trials("the clock jumps", claim, trial, full=5, quick=0)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("--config.model.head_rank=5", "model.head_rank=6; now model.head_rank=5"),
        ("--config.train.batch_size=4", "train.batch_size=8; now train.batch_size=4"),
        ("--config.seed=1", "seed=0; now seed=1"),
        (
            "--config.optimizer.learning_rate=2e-3",
            "learning_rate=0.001; now optimizer.learning_rate=0.002",
        ),
    ],
)
def test_a_config_edited_between_restarts(faults, lab, undisturbed, tmp_path, change, line):
    def trial(index):
        workdir = tmp_path / f"run-{index}"
        shutil.copytree(undisturbed, workdir)
        (workdir / "COMPLETE").unlink()
        output = lab.training(change).finish(workdir, code=2)
        assert line in output and "choose a new folder, or the old values" in output
        # What may change: where a run is carried out, and how often it is saved.
        lab.training("--config.checkpoint.every=5", "--config.train.log_every=3").finish(workdir)
        return None

    claim = "refused, the field named with both values; the old config goes on"
    quick = int("head_rank" in change)
    faults.run_trials("config edited between restarts", claim, trial, full=1, quick=quick)


def test_ctrl_c_before_there_is_anything_to_save_is_one_line(lab, tmp_path):
    process = lab.training().start(tmp_path / "run", stderr=subprocess.STDOUT)
    await_moment((tmp_path / "run" / ".lock").exists, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=HANGING)
    assert process.returncode == 130, output
    assert "Traceback" not in output, output
