"""Whatever is not training, killed at any moment, ends as if it had been left alone.

`make test` kills when a named file shows in the folder; random moments are of `make faults`.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import HANGING, await_moment, comes, is_in_use
from small_runs import write_config

from bottleneck import runs
from bottleneck.config import ModelConfig
from bottleneck.model import transformer
from bottleneck.pretrained.huggingface import save_pretrained
from bottleneck.signals import EXIT_CODES
from bottleneck.storage.folders import visible_files

SWEEP = """
from bottleneck.sweep.cells import product

def get_sweep():
    return product({"seed": range(3)})  # which all have one compiled program
"""

CLAIM = "started again, it ends bit-identical to one left alone"


@dataclass
class Job:
    """A command that leaves a folder, and what is to be known about both."""

    verb: str
    program: object  # of the harness
    reference: Path  # what it left when nothing happened to it
    seconds: float  # that this took
    flag: str | None  # what names the folder that it has for itself; None: others may write there
    watched: tuple[str, ...]  # patterns of what shows in the folder when it is in a tender place
    lost: Callable[[Path], str | None]  # what a folder, killed as it is, will see done again
    growing: tuple[str, ...] = ()  # patterns of files that are added to, until the job is done
    # What the quick set has trials of: "kill", "notices", "second"; other tests have the rest.
    quick: tuple[str, ...] = ()
    named: str = ""  # a pattern: of the quick set's kills and notices, the moment when it shows
    kept: tuple[str, ...] = ()  # patterns of files that, once there, are not written again
    elsewise: tuple[str, ...] = ()  # patterns of files that `same` compares, and not their bytes
    same: Callable[[Path, Path], None] = lambda ours, theirs: None


def of(folder, patterns):
    return {path.relative_to(folder) for pattern in patterns for path in folder.glob(pattern)}


def contents(folder):
    """Path → bytes of every file that has its final name, wherever the folder and the code lie.

    Without the checksum that a file ends with, which is of the folder's name as well.
    """
    varying = rb'|"git_revision": .*|"crc32": "[0-9a-f]{8}"'
    here = re.compile(re.escape(str(folder).encode()) + varying)
    return {
        path.relative_to(folder): here.sub(b"", path.read_bytes())
        for path in (visible_files(folder) if folder.exists() else ())
        if "draft" not in path.name and "-tmp" not in str(path)
    }


def check_nothing_is_half_there(faults, job, folder):
    """Whatever has its final name is what an undisturbed job would have left under it."""
    expected, growing = contents(job.reference), of(folder, (*job.growing, *job.elsewise))
    for path, found in contents(folder).items():
        if path not in growing and expected.get(path) != found:
            raise faults.WrongResult(f"{path} is half there, of {len(found)} bytes")


def check_same(faults, job, folder):
    """Every file is there with the same contents, and no other one."""
    ours, theirs = contents(folder), contents(job.reference)
    for path in of(folder, job.elsewise) | of(job.reference, job.elsewise):
        ours.pop(path, None), theirs.pop(path, None)
    if different := [str(p) for p in ours.keys() | theirs.keys() if ours.get(p) != theirs.get(p)]:
        raise faults.WrongResult(f"{', '.join(sorted(different))} came out different")
    try:
        job.same(folder, job.reference)
    except AssertionError as error:
        raise faults.WrongResult(str(error)) from error


def written(folder, patterns):
    return {path: (folder / path).stat().st_mtime_ns for path in of(folder, patterns)}


# ------------------------------------------------------------------------------------ the jobs


@pytest.fixture(scope="module")
def big(faults, lab):
    """A config of a corpus that takes seconds to tokenize."""
    folder = lab.folder / "big"
    folder.mkdir()
    words = np.array([f"word{i}" for i in range(5000)])
    for i in range(30):
        drawn = np.random.default_rng(i).zipf(1.3, 40_000) % len(words)
        (folder / f"{i}.txt").write_text(" ".join(words[drawn]))
    places = {"data.paths": (str(folder),), "data.cache_dir": str(lab.folder / "big-cache")}
    return write_config(lab.folder / "big.py", faults.SETTINGS | places)


@pytest.fixture(scope="module")
def released(lab, undisturbed):
    """A folder of exported steps, each with the tokenizer of the lab's corpus."""
    (tokenizer,) = (lab.folder / "cache").glob("*/tokenizer.json")
    shape = dict(vocab_size=300, vocab_multiple=1, d_model=32, n_layers=2, n_heads=4, d_ff=64)
    config = ModelConfig(**shape, max_length=64, rotary_fraction=0.25)
    for step in range(0, 8000, 1000):
        folder = lab.folder / "released" / f"step{step}"
        save_pretrained(config, transformer.init_params(config, jax.random.key(step)), folder)
        (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return lab.folder / "released"


@pytest.fixture(scope="module")
def jobs():
    """Name → job, each made when it is first asked for."""
    return {}


def make(jobs, name, program, place, **more):
    """The job of a name, which is run to its end once."""
    if name not in jobs:
        started = time.monotonic()
        program.finish(place)
        jobs[name] = Job(name, program, place, time.monotonic() - started, **more)
    return jobs[name]


@pytest.fixture
def prepare(jobs, lab, big):
    def lost(folder):
        shards = folder.glob(".*.unfinished/*.bin")
        return f"{sum(path.stat().st_size for path in shards) // 2} tokens"

    program = lab.program("prepare", f"--config={big}", "--config.data.cache_dir={folder}")
    return make(
        *(jobs, "prepare", program, lab.folder / "prepared"),
        flag=None,
        watched=(".*.unfinished", ".*.unfinished/*.bin", ".*.unfinished/manifest.json"),
        lost=lost,
        kept=("big-*/*",),
    )


@pytest.fixture
def ngrams(jobs, lab):
    tokens = lab.folder / "tokens.npy"
    if not tokens.exists():
        drawn = np.random.default_rng(0).zipf(1.4, 4_500_000) % 60
        np.save(tokens, drawn.astype(np.uint16))

    def lost(folder):
        unfinished = not (folder / "manifest.json").exists() and folder.exists()
        return "1 run, part or curve" if unfinished else None

    program = lab.program(
        *("ngrams", f"--ids={tokens}", "--output={folder}"),
        *("--n=3", "--memory=1.02", "--contexts=500,1000", "--min_count=2", "--end_of_text=7"),
    )
    return make(
        *(jobs, "ngrams", program, lab.folder / "ngrams"),
        flag="--output",
        watched=("counts/*/runs/*", "counts/*/tokens.bin", "scratch", "curves/*", "manifest.json"),
        lost=lost,
        quick=("kill", "notices", "second"),
        named="curves/*",
        growing=("counts/**/*", "scratch/**/*"),
        kept=("curves/*.npz",),
    )


@pytest.fixture
def features(jobs, lab, undisturbed):
    def lost(folder):
        unfinished = not (folder / "COMPLETE").exists() and (folder / "train").exists()
        return "1 batch" if unfinished else None

    program = lab.program(
        *("features", f"{undisturbed}", "--output={folder}", "--batch_size=1"),
        *("--tokens=6000", "--validation_tokens=2000"),
    )
    return make(
        *(jobs, "features", program, lab.folder / "features"),
        flag="--output",
        watched=("manifest.json", "train/*", "validation/*", "COMPLETE", "probe.json"),
        quick=("kill",),
        named="train/*",
        lost=lost,
        growing=("*/hidden.bin", "*/layers.bin"),
        kept=("manifest.json", "head.npz", "probe.json"),
    )


@pytest.fixture
def frozen_heads(faults, jobs, lab, request):
    if not faults.IS_FULL:
        pytest.skip("in the full set, as it compiles for long")
    features = request.getfixturevalue("features")

    def lost(folder):
        if not folder.exists() or (folder / "results.json").exists():
            return None
        if not (folder / "search.json").exists():
            return "50 steps of the search"
        return "10 steps" if (folder / "optimum.npz").exists() else "1 optimum"

    program = lab.program(
        *("frozen_heads", f"{features.reference}", "--output={folder}", "--ranks=4"),
        *("--starts=whitened", "--learning_rates=1e-3,1e-2", "--batch_tokens=256"),
        *("--steps=200", "--search_steps=50"),
    )
    return make(
        *(jobs, "frozen_heads", program, lab.folder / "frozen_heads"),
        flag="--output",
        watched=("plan.json", "search.json", "optimum.npz", "state/*", "documents.npz"),
        lost=lost,
        growing=("state/**/*",),
        elsewise=("state/**/*",),
        kept=("search.json", "optimum.npz", "results.json"),
    )


@pytest.fixture
def series(faults, jobs, lab, released):
    def lost(folder):
        unfinished = (folder / "config.json").exists() and len(of(folder, ("probes/*.npz",))) < 8
        return "1 checkpoint" if unfinished else None

    def same(ours, theirs):
        assert faults.metrics(ours) == faults.metrics(theirs)
        # What was measured is not measured again.
        lines = [len((f / "metrics.jsonl").read_text().splitlines()) for f in (ours, theirs)]
        assert lines[1] <= lines[0] <= lines[1] + 2

    program = lab.program(
        *("series", f"{released}", f"--config={lab.config}", "--workdir={folder}"),
        "--config.train.steps=7000",
    )
    return make(
        *(jobs, "series", program, lab.folder / "series"),
        flag="--workdir",
        watched=("audit.json", "tokenizer.json", "config.json", "probes/*", "metrics.jsonl"),
        lost=lost,
        growing=("audit.json",),
        elsewise=("metrics.jsonl",),
        kept=("tokenizer.json", "probes/*.npz"),
        same=same,
    )


@pytest.fixture
def analyze(jobs, lab, undisturbed):
    def lost(folder):
        unfinished = folder.exists() and not (folder / "report.html").exists()
        return "1 report" if unfinished else None

    program = lab.program("analyze", f"{undisturbed}", "--output={folder}")
    return make(
        *(jobs, "analyze", program, lab.folder / "report"),
        flag="--output",
        watched=("figures", "figures/*", "figures/anisotropy.svg"),
        quick=("kill",),
        named="figures/*",
        lost=lost,
    )


@pytest.fixture
def import_hf(jobs, lab, released):
    def lost(folder):
        saved = of(folder, ("checkpoints/3000",))
        return "1 import" if folder.exists() and not saved else None

    def same(ours, theirs):
        a, b = runs.load(ours), runs.load(theirs)
        assert a.steps == b.steps == [3000]
        for mine, other in zip(*(jax.tree.leaves(run.params()) for run in (a, b)), strict=True):
            np.testing.assert_array_equal(mine, other)

    program = lab.program("import_hf", f"{released / 'step3000'}", "--workdir={folder}")
    return make(
        *(jobs, "import_hf", program, lab.folder / "imported"),
        flag="--workdir",
        watched=("tokenizer.json", "config.json", "checkpoints", "checkpoints/*"),
        quick=("kill",),
        named="checkpoints/*",
        lost=lost,
        elsewise=("checkpoints/**/*",),
        same=same,
    )


@pytest.fixture
def job(request):
    return request.getfixturevalue(request.param)


NAMES = ("prepare", "ngrams", "features", "frozen_heads", "series", "analyze", "import_hf")
every_job = pytest.mark.parametrize("job", NAMES, indirect=True)


# ---------------------------------------------------------------------------------- the trials


def check_stopped(job, number, code, output):
    """A signal ended it with the code of a shell and one line, or it had ended before."""
    assert "Traceback" not in output and "Exception ignored" not in output, output
    if number == signal.SIGKILL:
        assert code in (0, -number), (code, output)
    elif code != 0:
        assert code == EXIT_CODES[number], (code, output)
        said = [line for line in output.splitlines() if line.startswith("stopped by")]
        assert said == output.splitlines()[-1:], output


def disturb(job, folder, number, moment, delay):
    """Sends a signal, at a moment and a delay, to the job as a terminal does; waits for its end."""
    process = job.program.start(folder)
    comes(moment, process)
    time.sleep(delay)
    if process.poll() is None:
        os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=HANGING)
    check_stopped(job, number, process.returncode, output)


def check_a_second_is_refused(job, folder):
    """Finishes a job; a second process on its folder ends in one line, and does no harm."""
    first = job.program.start(folder)
    try:
        await_moment(lambda: is_in_use(folder), first)
        first.send_signal(signal.SIGSTOP)  # until the second has looked
        said = job.program.finish(folder, code=2).splitlines()
        first.send_signal(signal.SIGCONT)
        output, _ = first.communicate(timeout=HANGING)
    finally:
        first.kill()
    assert first.returncode == 0, output
    holder = f"process {first.pid} on {socket.gethostname()}"
    assert said[-1] == (
        f"error: {job.flag}={folder} is in use by {holder}; stop that one, or choose another folder"
    )
    assert not any("Traceback" in line for line in said)


def drawn(faults, job, source, index, folder):
    """(moment, delay): two of three anywhere in the job, the third in a tender place."""
    if not faults.IS_FULL:
        return (lambda: any(folder.glob(job.named))), 0
    if index % 3 < 2:
        # Python itself takes the first third of a second.
        return (lambda: True), max(job.seconds * source.random(), 0.3)
    pattern = job.watched[index // 3 % len(job.watched)]
    return (lambda: any(folder.glob(pattern))), 0.02 * source.random()


def go_on(faults, job, folder):
    """What was lost of a job that was stopped; the same command ends it, with the right results."""
    check_nothing_is_half_there(faults, job, folder)
    lost, kept = job.lost(folder), written(folder, job.kept)
    job.program.finish(folder)
    check_same(faults, job, folder)
    assert written(folder, job.kept).items() >= kept.items(), "what was done is done again"
    return lost


def signal_trials(faults, job, number, tmp_path, *, full, quick):
    source = faults.source()

    def trial(index):
        folder = tmp_path / f"{index}"
        disturb(job, folder, number, *drawn(faults, job, source, index, folder))
        return go_on(faults, job, folder)

    faults.run_trials(f"{number.name} of `{job.verb}`", CLAIM, trial, full=full, quick=quick)


@pytest.mark.parametrize("job", [n for n in NAMES if n != "frozen_heads"], indirect=True)
def test_sigkill(faults, job, tmp_path):
    signal_trials(faults, job, signal.SIGKILL, tmp_path, full=12, quick=int("kill" in job.quick))


@every_job
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_notice(faults, job, number, tmp_path):
    signal_trials(faults, job, number, tmp_path, full=3, quick=int("notices" in job.quick))


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        ("plan.json", "search.json"),
        ("search.json", "optimum.npz"),
        ("optimum.npz", "results.json"),
    ],
    ids=["search", "optimum", "training"],
)
def test_sigkill_in_a_stage_of_frozen_heads(faults, frozen_heads, begin, end, tmp_path):
    job, source = frozen_heads, faults.source()
    times = [(job.reference / name).stat().st_mtime for name in (begin, end)]

    def trial(index):
        folder = tmp_path / f"{index}"
        is_begun = (folder / begin).exists
        disturb(job, folder, signal.SIGKILL, is_begun, source.random() * (times[1] - times[0]))
        return go_on(faults, job, folder)

    fault = f"SIGKILL of `frozen_heads` between {begin} and {end}"
    faults.run_trials(fault, CLAIM, trial, full=10)


@every_job
def test_a_second_process_on_a_folder_is_refused(faults, job, tmp_path):
    if job.flag is None:
        pytest.skip("it has no folder to itself")

    def trial(index):
        folder = tmp_path / f"{index}"
        check_a_second_is_refused(job, folder)
        check_same(faults, job, folder)

    claim = "is refused in one line, and the first ends as if alone"
    faults.run_trials(
        f"a second `{job.verb}`", claim, trial, full=3, quick=int("second" in job.quick)
    )


def test_of_two_that_make_one_cache_either_may_be_killed(faults, prepare, tmp_path):
    job, source = prepare, faults.source()

    def trial(index):
        folder = tmp_path / f"{index}"
        first = job.program.start(folder)
        await_moment(lambda: any(folder.glob(".*.unfinished")), first)
        second = job.program.start(folder)
        time.sleep(job.seconds * source.random())
        killed, other = (first, second) if index % 2 == 0 else (second, first)
        killed.kill()
        killed.communicate()
        output, _ = other.communicate(timeout=HANGING)
        assert other.returncode == 0, output
        check_same(faults, job, folder)

    claim = "the other makes it, bit-identical"
    fault = "SIGKILL of one of two `prepare` at once"
    faults.run_trials(fault, claim, trial, full=10, quick=0)


# -------------------------------------------------------------------------------------- sweeps


@pytest.fixture(scope="module")
def sweep(faults, lab):
    """The command, and the folder that it left when nothing happened to it."""
    if not faults.IS_FULL:
        pytest.skip("in the full set, as each of its cells starts a program")
    places = {"data.paths": (str(lab.text),), "data.cache_dir": str(lab.folder / "cache")}
    config = write_config(lab.folder / "sweep.py", faults.SETTINGS | places, more=SWEEP)
    program = lab.program(
        *("sweep", f"--config={config}", "--workdir={folder}", "--parallel=2"),
        *("--config.train.steps=30", "--config.probe.every=15"),
    )
    program.finish(lab.folder / "sweep")
    return program, lab.folder / "sweep"


def cells(root):
    return [root / f"seed={seed}" for seed in range(3)]


def steps_of(faults, root):
    return sum(faults.last_step(cell) + 1 for cell in cells(root))


@pytest.mark.parametrize("everything", [True, False], ids=["everything", "alone"])
def test_sigkill_of_a_sweep(faults, sweep, everything, tmp_path):
    (program, reference), source = sweep, faults.source()

    def trial(index):
        root, goal = tmp_path / f"{index}", source.randrange(1, 60)
        process = program.start(root, stdout=subprocess.DEVNULL)
        await_moment(lambda: steps_of(faults, root) >= goal, process)
        (os.killpg if everything else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
        lost = sum(
            faults.last_step(cell) - max(faults.saved_steps(cell), default=0)
            for cell in (cells(root) if everything else ())
            if faults.last_step(cell) > 0
        )
        # What it had started goes on, and is waited for: no cell is trained twice at once.
        program.finish(root)
        for cell in cells(root):
            faults.assert_same_run(cell, reference / cell.name)
        assert "3 of 3 cells are complete already" in program.finish(root)
        return f"{lost} steps" if lost else None

    what = "and all that it started" if everything else "alone"
    claim = "started again, its runs are bit-identical to undisturbed ones"
    faults.run_trials(f"SIGKILL of `sweep` {what}", claim, trial, full=10)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_notice_to_a_sweep(faults, sweep, number, code, tmp_path):
    (program, reference), source = sweep, faults.source()

    def trial(index):
        root, goal = tmp_path / f"{index}", source.randrange(1, 45)
        process = program.start(root)
        await_moment(lambda: steps_of(faults, root) >= goal, process)
        process.send_signal(number)
        output, _ = process.communicate(timeout=HANGING)
        assert process.returncode == code, output
        assert output.splitlines()[-1] == "stopped; repeat the command to resume"
        for cell in cells(root):
            assert faults.last_step(cell) == max(faults.saved_steps(cell), default=-1)
        program.finish(root)
        for cell in cells(root):
            faults.assert_same_run(cell, reference / cell.name)

    claim = f"its cells save and end, it exits with {code}, and loses nothing"
    faults.run_trials(f"{number.name} of `sweep`", claim, trial, full=3)
