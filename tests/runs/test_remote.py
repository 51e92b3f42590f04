"""Run folders and sweeps in a bucket: against a server that speaks as Google Cloud Storage does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from processes import HANGING, await_moment
from small_runs import write_experiment

from bottleneck.errors import UserError
from bottleneck.parallel.compile_cache import Store
from bottleneck.runs import metrics_writer as metric_parts_lib
from bottleneck.runs.folder import metric_files, metric_parts
from bottleneck.runs.metrics_writer import MetricParts
from bottleneck.storage.folders import as_path

# gcsfs would ask Google at each step what kind of bucket it is, and who we are.
os.environ |= {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "NO_GCE_CHECK": "true"}
pytest.importorskip("gcsfs")
pytest.importorskip("gcp_storage_emulator")

SERVER = Path(__file__).parents[1] / "support/fake_storage.py"

SETTINGS = {
    "model.d_model": 16,
    "model.n_layers": 1,
    "model.n_heads": 2,
    "model.head_rank": 4,
    "train.steps": 40,
    "train.sequence_length": 16,
    "probe.every": 20,
    "probe.tokens": 256,
    "checkpoint.every": 9,
}
SWEEP = """
def get_sweep():
    return [{"seed": 0}, {"seed": 1}]
"""


@pytest.fixture(scope="module")
def server():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(SERVER), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + HANGING
    while True:
        try:
            urllib.request.urlopen(f"{address}/storage/v1/b/bucket").close()  # noqa: S310
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    yield address
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def environment(server):
    mine = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return mine | {"STORAGE_EMULATOR_HOST": server, "TENSORSTORE_GCS_HTTP_URL": server}


@pytest.fixture
def bucket(server, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server)
    return as_path("gs://bucket")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_experiment(tmp_path_factory.mktemp("remote"), SETTINGS, more=SWEEP)


def start(environment, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "bottleneck", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(environment, *arguments, code=0):
    process = start(environment, *arguments)
    output, errors = process.communicate(timeout=HANGING)
    assert process.returncode == code, errors
    return output + errors


# Read in a process of its own, as TensorStore asks for the server's address once.
READ = """
import json, sys
import jax
import numpy as np
from bottleneck import runs
run = runs.load(sys.argv[1])
metrics = run.metrics.filter(run.metrics["split"] != "time")
timings = ["tokens_per_second", "mfu"]
print(json.dumps({
    "complete": run.is_complete,
    "steps": run.steps,
    "probe_steps": run.probe_steps,
    "metrics": metrics.select(c for c in metrics.columns if c not in timings
                              and not c.endswith("seconds")).to_dicts(),
    "probe": {k: np.asarray(v, float).tolist() for k, v in run.probe().arrays().items()},
    "params": [np.asarray(x).tolist() for x in jax.tree.leaves(run.params())],
}, sort_keys=True))
"""


def read(environment, workdir):
    command = [sys.executable, "-W", "ignore", "-c", READ, str(workdir)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
def test_a_run_in_a_bucket_killed_and_continued_is_the_run_on_a_disk(
    config, environment, bucket, tmp_path
):
    run(environment, "train", f"--config={config}", f"--workdir={tmp_path}/run")
    remote = "gs://bucket/some/run"
    process = start(environment, "train", f"--config={config}", f"--workdir={remote}")
    await_moment((bucket / "some/run/checkpoints/18/commit_success.txt").exists, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again = run(environment, "train", f"--config={config}", f"--workdir={remote}")
    assert "continuing from step" in again
    ours, theirs = read(environment, remote), read(environment, tmp_path / "run")
    assert ours == theirs and ours["complete"]
    names = {path.name for path in (bucket / "some/run").iterdir()}
    assert names >= {"COMPLETE", "config.json", "checkpoints", "probes", "tensorboard"}
    assert {"metrics-00000.jsonl", "metrics-00001.jsonl"} <= names  # one each time
    assert any((bucket / "some/run/tensorboard").iterdir())
    done = run(environment, "train", f"--config={config}", f"--workdir={remote}")
    assert "complete; nothing to do" in done


@pytest.mark.slow
def test_a_sweep_in_a_bucket(config, environment, bucket, tmp_path):
    root = "gs://bucket/sweep"
    home = environment | {"HOME": str(tmp_path)}  # of locks and logs
    sweep = ["sweep", f"--config={config}", f"--workdir={root}"]
    run(home, *sweep, "--parallel=2")
    assert all((bucket / "sweep" / f"seed={seed}" / "COMPLETE").exists() for seed in (0, 1))
    assert "2 of 2 cells are complete already" in run(home, *sweep)
    assert "2 complete" in run(home, *sweep, "--status")
    output = run(home, "analyze", root, f"--output={tmp_path}/report")
    assert "seed=0" in output and (tmp_path / "report/report.html").exists()


def test_compiled_programs_in_a_bucket(bucket, capsys):
    folder = bucket / "compiled"
    assert Store(folder).get("one") is None
    Store(folder).put("one", b"program")
    assert Store(folder).get("one") == b"program"
    (folder / "one.program").write_bytes(b"damaged")
    assert Store(folder).get("one") is None
    assert capsys.readouterr().err.count("is damaged") == 1
    assert not (folder / "one.program").exists()


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # gcsfs's own way
def test_text_in_a_bucket_is_the_text_on_a_disk(bucket, tmp_path):
    import gzip

    import pyarrow
    import pyarrow.parquet

    from bottleneck.config import DataConfig
    from bottleneck.data.corpus import open_corpus

    here, there = tmp_path / "text", bucket / "text"
    (here / "deep").mkdir(parents=True)
    (here / "a.txt").write_text("one")
    (here / "deep/b.md").write_text("two\n" * 300_000)  # long, so cut into passages
    (here / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three"}\n{"text": "four"}\n'))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["five", "six"]}), here / "d.parquet")
    (here / ".hidden.txt").write_text("no")
    for path in here.rglob("*"):
        if path.is_file():
            (there / str(path.relative_to(here))).write_bytes(path.read_bytes())

    def read(*paths):
        corpus = open_corpus(DataConfig(corpus="text", paths=tuple(map(str, paths))))
        return [(d.text, d.position) for d in corpus.documents()], corpus.fingerprint.bytes

    assert read(there) == read(here) and len(read(here)[0]) > 50
    assert read(there / "*.txt", there / "d.parquet") == read(here / "*.txt", here / "d.parquet")
    with pytest.raises(UserError, match=r"did you mean gs://bucket/text/a\.txt"):
        read(there / "aa.txt")


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture(params=["a bucket", "a disk"])
def folder(request, bucket, tmp_path):
    """Parts are the same wherever they lie: a run that was copied from a bucket is read as well."""
    return bucket / "parts" / tmp_path.name if request.param == "a bucket" else tmp_path


def text(folder):
    return "".join(path.read_text() for path in metric_files(folder))


def test_lines_are_in_the_bucket_when_flushed_or_after_a_while_and_in_order(folder):
    clock = Clock()
    parts = MetricParts(folder, clock)
    parts.write("1\n")
    assert text(folder) == ""
    parts.flush()
    parts.write("2\n")
    assert text(folder) == "1\n"
    clock.seconds += metric_parts_lib.FLUSH_SECONDS
    parts.write("3\n")
    assert text(folder) == "1\n2\n3\n"
    parts.write("lost in a kill\n")

    parts = MetricParts(folder, clock)
    parts.write("4\n")
    parts.close()
    assert text(folder) == "1\n2\n3\n4\n"
    for name in ("metrics-000001.jsonl", "metrics-0000٣.jsonl", "metrics-²²²²².jsonl"):
        (folder / name).write_text("of another")  # not as a part is named
    assert list(metric_parts(folder)) == [0, 1]


def test_a_part_that_has_grown_large_is_left_alone(folder, monkeypatch):
    monkeypatch.setattr(metric_parts_lib, "PART_BYTES", 8)
    parts = MetricParts(folder, Clock())
    for number in range(5):
        parts.write(f"{number:03}\n")
        parts.flush()
    assert [path.read_text() for path in metric_parts(folder).values()] == [
        "000\n001\n",
        "002\n003\n",
        "004\n",
    ]
    assert text(folder) == "000\n001\n002\n003\n004\n"


def test_other_stores_are_refused_in_one_line():
    with pytest.raises(
        UserError, match=r"s3://x/y is not supported; a remote folder must be gs://"
    ):
        as_path("s3://x/y")
