"""Real processes on loopback: they train as one, and another number of them can go on."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import HANGING
from small_runs import write_experiment

from bottleneck.errors import UserError
from bottleneck.parallel.distributed import Processes, ended_together

SETTINGS = {
    "model.n_layers": 1,
    "train.steps": 12,
    "train.batch_size": 8,
    "train.sequence_length": 16,
    "probe.every": 6,
    "probe.tokens": 256,
    "probe.ranks": (4,),
    "checkpoint.every": 6,
}

CLUSTER = Path(__file__).parents[2] / "launch/local_cluster.sh"

# One CPU device in each process.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_experiment(tmp_path_factory.mktemp("distributed"), SETTINGS)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(command, environment):
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def wait_for(processes):
    """What each wrote to its output and to its errors."""
    processes = list(processes)
    try:
        outputs = [process.communicate(timeout=HANGING) for process in processes]
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                process.communicate()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return outputs


def train(config, workdir, n_processes):
    command = [sys.executable, "-m", "bottleneck", "train"]
    command += [f"--config={config}", f"--workdir={workdir}"]
    worlds = [[]]
    if n_processes > 1:
        address = f"--coordinator=127.0.0.1:{free_port()}"
        worlds = [
            [address, f"--processes={n_processes}", f"--process={i}"] for i in range(n_processes)
        ]
    outputs = wait_for(start([*command, *world], ENVIRONMENT) for world in worlds)
    return [errors for _, errors in outputs]


# Two processes of two devices whose shares of the batch do not follow one upon the other, as on a
# TPU slice; every row holds its own number.
FEED = """
import sys

import jax
import numpy as np
from jax.sharding import Mesh

from bottleneck.parallel import distributed
from bottleneck.parallel.mesh import MESH_AXES
from bottleneck.training.feed import device_batches

class Batches:
    batch_size, sequence_length = 8, 3

    def iterate(self, start, stop, rows, then):
        assert len(rows) == 4, rows
        for step in range(start, stop):
            numbers = 100 * step + np.arange(8)[rows]
            yield step, then({"inputs": np.repeat(numbers[:, None], 3, axis=1)})

distributed.start(distributed.Processes(sys.argv[1], 2, int(sys.argv[2])))
devices = np.array(sorted(jax.devices(), key=lambda device: (device.id % 2, device.process_index)))
mesh = Mesh(devices.reshape(1, 4, 1), MESH_AXES)
for step, batch in device_batches(Batches(), mesh, 1, 3):
    for shard in batch["inputs"].addressable_shards:
        expected = 100 * step + np.arange(8)[shard.index[0]]
        np.testing.assert_array_equal(shard.data, np.repeat(expected[:, None], 3, axis=1))
print([shard.index[0].start for shard in batch["inputs"].addressable_shards])
"""


def test_each_process_reads_its_rows_alone_wherever_they_lie():
    environment = ENVIRONMENT | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-c", FEED, f"127.0.0.1:{free_port()}"]
    outputs = wait_for(start([*command, str(index)], environment) for index in range(2))
    assert [output for output, _ in outputs] == ["[0, 4]\n", "[2, 6]\n"]


def losses(workdir):
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {(r["step"], r["split"]): r["loss"] for r in records if "loss" in r}


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone") / "run"
    train(config, workdir, 1)
    return losses(workdir)


@pytest.fixture(scope="module")
def of_two(config, tmp_path_factory):
    """(run folder of two processes, what each of them said)."""
    workdir = tmp_path_factory.mktemp("of two") / "run"
    return workdir, train(config, workdir, 2)


def test_two_processes_train_as_one(of_two, alone):
    workdir, outputs = of_two
    assert losses(workdir).keys() == alone.keys()
    for key, loss in losses(workdir).items():
        np.testing.assert_allclose(loss, alone[key], atol=1e-5, err_msg=str(key))
    assert not any("step 6/12" in output for output in outputs[1:])  # one process speaks


@pytest.mark.parametrize("n_processes", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_another_number_of_processes_goes_on(of_two, config, alone, tmp_path, n_processes):
    workdir = tmp_path / "run"
    shutil.copytree(of_two[0], workdir)
    # As after a stop at step 6: what came later is gone.
    (workdir / "COMPLETE").unlink()
    (workdir / "metrics.jsonl").write_text("")
    shutil.rmtree(workdir / "checkpoints" / "12")
    train(config, workdir, n_processes)
    later = losses(workdir)
    assert min(step for step, _ in later) == 7
    for key, loss in later.items():
        np.testing.assert_allclose(loss, alone[key], atol=1e-5, err_msg=str(key))


@pytest.mark.slow
def test_a_local_cluster_of_four_trains_as_one(config, alone, tmp_path):
    workdir = tmp_path / "a run"
    command = ["bash", str(CLUSTER), "4", "--", "train", f"--config={config}"]
    environment = ENVIRONMENT | {"PYTHON": sys.executable}
    ((output, _),) = wait_for([start([*command, f"--workdir={workdir}"], environment)])
    assert "[0] step 12/12" in output and "[3] step" not in output
    assert losses(workdir).keys() == alone.keys()
    for key, loss in losses(workdir).items():
        np.testing.assert_allclose(loss, alone[key], atol=1e-5, err_msg=str(key))


def test_a_local_cluster_ends_when_one_of_its_processes_fails(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *--process=1) exit 3;; esac\nexec sleep 60\n')
    python.chmod(0o755)
    environment = ENVIRONMENT | {"PYTHON": str(python), "PORT": "1"}
    process = start(["bash", str(CLUSTER), "3", "--", "train"], environment)
    try:
        _, errors = process.communicate(timeout=HANGING)
    finally:
        process.kill()
    assert process.returncode == 1 and "a process failed; ending the others" in errors


@pytest.mark.parametrize(
    ("world", "message"),
    [
        (("host:1234", 0, 0), "--processes=0"),
        (("host:1234", 2, 2), "--process=2"),
        (("host", 2, 0), "HOST:PORT"),
        (("host:port", 2, 0), "HOST:PORT"),
    ],
)
def test_a_wrong_world_is_one_line(world, message):
    with pytest.raises(UserError, match=message):
        Processes(*world)


# What gloo says at a collective, in the two types that jax makes of it.
RESET = "UNKNOWN: Gloo AllGather failed: Read error [127.0.0.1]:37294: Connection reset by peer"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (jax.errors.JaxRuntimeError(RESET), 4, "process 1 of 4 has lost another and ends"),
        (ValueError(RESET), 4, "process 1 of 4 has lost another and ends"),
        (ValueError("shapes differ"), 1, "process 1 of 4 ends, and with it the others"),
        (UserError("no such file"), 2, "no such file; process 1 of 4 ends"),
    ],
)
def test_what_ends_one_of_many_is_named_by_its_exit_code(error, code, line, monkeypatch, capfd):
    class Ended(BaseException):
        pass

    def end(code):
        raise Ended(code)

    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(Ended) as ended, ended_together():
        raise error
    assert ended.value.args == (code,)
    said = capfd.readouterr().err
    assert line in said and ("Traceback" in said) == (code == 1)
