"""A run that is killed ends as one that was left alone, to the last bit.

`make test` kills in a save. It leaves random moments to `make faults`, and steps, a probe and
notices to tests/training/test_resume.py.
"""

import signal
import time

import pytest
from processes import HANGING, await_moment

STEPS, EVERY = 60, 7  # of the lab's config: steps, and between two saves


def in_a_step(faults, source):
    """A moment after a step that is drawn; -1 is before the first."""
    goal = source.randrange(-1, STEPS)
    return lambda workdir: faults.last_step(workdir) >= goal


def in_a_probe(faults, source):
    """A moment just after the step of a probe is on record, and before what it found is."""
    step = source.choice((20, 40, 60))

    def is_now(workdir):
        path = workdir / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return f'"step": {step}, "split": "train"' in text

    return is_now


def in_a_save(faults, source):
    """A moment when a checkpoint is being written, which has no name yet."""
    goal = source.randrange(-1, STEPS - EVERY)

    def is_now(workdir):
        drafts = list((workdir / "checkpoints").glob("*orbax-checkpoint-tmp*"))
        return bool(drafts) and faults.last_step(workdir) >= goal

    return is_now


def lost(faults, workdir):
    """Steps that were on record and are in no checkpoint, as the table has them."""
    steps = faults.last_step(workdir) - max(faults.saved_steps(workdir), default=0)
    return f"{steps} steps" if steps > 0 else None


@pytest.mark.parametrize(
    ("moment", "where", "longest", "full", "quick"),
    [
        (in_a_step, "a random moment of training", 0.2, 50, 0),
        (in_a_probe, "a probe", 0.1, 10, 0),
        (in_a_save, "a save", 0.03, 10, 1),
    ],
)
def test_sigkill(faults, lab, undisturbed, tmp_path, moment, where, longest, full, quick):
    source = faults.source()

    def trial(index):
        workdir = tmp_path / f"run-{index}"
        is_now, delay = moment(faults, source), longest * source.random()
        lab.training().kill(workdir, lambda: is_now(workdir), delay=delay)
        work = lost(faults, workdir)
        lab.training().finish(workdir)
        faults.assert_same_run(workdir, undisturbed)
        return work

    claim = "started again, it ends bit-identical to a run left alone"
    faults.run_trials(f"SIGKILL at {where}", claim, trial, full=full, quick=quick)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
def test_a_notice(faults, lab, undisturbed, tmp_path, number, code):
    source = faults.source()

    def trial(index):
        workdir, goal = tmp_path / f"run-{index}", source.randrange(0, STEPS - 10)
        process = lab.training().start(workdir)
        await_moment(lambda: faults.last_step(workdir) >= goal, process)
        time.sleep(0.05 * source.random())
        process.send_signal(number)
        output, _ = process.communicate(timeout=HANGING)
        assert process.returncode == code, output
        saved, reached = faults.saved_steps(workdir)[-1], faults.last_step(workdir)
        assert f"{number.name}: saved step {saved}" in output
        assert saved == reached, "a step was done and not saved"
        before = len((workdir / "metrics.jsonl").read_text().splitlines())
        lab.training().finish(workdir)
        repeated = (workdir / "metrics.jsonl").read_text().splitlines()[before:]
        assert all(f'"step": {saved},' not in line for line in repeated), "a step was done twice"
        faults.assert_same_run(workdir, undisturbed)
        return None

    claim = f"saves the step at hand, exits with {code}, goes on as if never stopped"
    faults.run_trials(number.name, claim, trial, full=10, quick=0)


def test_a_second_ctrl_c_stops_at_once(faults, lab, undisturbed, tmp_path):
    source = faults.source()

    def trial(index):
        workdir, goal = tmp_path / f"run-{index}", source.randrange(0, STEPS - 20)
        process = lab.training().start(workdir)
        await_moment(lambda: faults.last_step(workdir) >= goal, process)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=HANGING)
        # Two signals sent in one breath may arrive as one.
        assert process.returncode == 130, output
        assert "stopped at once" in output or "SIGINT: saved step" in output
        lab.training().finish(workdir)
        faults.assert_same_run(workdir, undisturbed)
        return None

    claim = "stops at once with 130; started again, it ends bit-identical"
    faults.run_trials("SIGINT twice", claim, trial, full=10, quick=0)
