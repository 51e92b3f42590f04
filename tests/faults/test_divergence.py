"""A loss that is no number any more ends a run with a diagnosis, or a batch is skipped."""

import json

import numpy as np
import pytest

from bottleneck import runs

# Batches whose weights, and so loss and gradient, are not finite.
POISON = """
import numpy as np
from bottleneck.data import batches
batch = batches.Batches.batch
def poisoned(self, step, rows=slice(None)):
    found = batch(self, step, rows)
    if step in {steps}:
        found["weights"] = np.full_like(found["weights"], np.{value})
    return found
batches.Batches.batch = poisoned
"""


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_bad_batch_ends_the_run_before_it_spoils_a_checkpoint(
    faults, lab, undisturbed, tmp_path, value
):
    def trial(index):
        workdir = tmp_path / f"{value}-{index}"
        step = (31, 8, 60, 1)[index]
        training = lab.training(prelude=POISON.format(steps={step - 1}, value=value))
        output = training.finish(workdir, code=3)
        assert f"training has diverged: from step {step} the loss is" in output
        saved = faults.saved_steps(workdir)
        assert max(saved, default=0) == (step - 1) // 7 * 7, saved
        diagnosis = json.loads((workdir / "diagnosis.json").read_text())
        assert [facts["step"] for facts in diagnosis] == [step]
        (facts,) = diagnosis
        assert facts["loss"] in ("nan", "inf") and len(facts["windows"]) == 8
        assert facts["grad_norms"]["head/rows"] in ("nan", "inf")
        assert 0 < facts["learning_rate"] <= 1e-3
        # The batch is mended: it goes on from what is left, and nothing spoilt is in it.
        lab.training().finish(workdir)
        faults.assert_same_run(workdir, undisturbed)
        return f"{(step - 1) % 7 + 1} steps"

    claim = "ends with 3 and a diagnosis, no spoilt checkpoint; mended, ends bit-identical"
    quick = int(value == "nan")
    faults.run_trials(f"a batch makes the loss {value}", claim, trial, full=4, quick=quick)


def test_a_bad_batch_is_skipped_where_that_is_asked_for(faults, lab, undisturbed, tmp_path):
    def trial(index):
        workdir = tmp_path / f"run-{index}"
        skipping = ["--config.train.skip_bad_batches=True", "--config.train.bad_steps=3"]
        training = lab.training(*skipping, prelude=POISON.format(steps={30, 31, 40}, value="nan"))
        output = training.finish(workdir)
        assert "step 31: loss nan, its batch was skipped" in output
        run = runs.load(workdir)
        assert run.split("skipped")["step"].to_list() == [31, 32, 41]
        losses = faults.metrics(workdir)
        for step in range(1, 31):
            assert losses[step, "train"] == faults.metrics(undisturbed)[step, "train"]
        # Skipped as if it had not been there, but for the learning rate, which is the step's.
        assert losses[33, "train"]["learning_rate"] == pytest.approx(
            faults.metrics(undisturbed)[33, "train"]["learning_rate"], rel=1e-6
        )
        assert all(np.isfinite(loss) for loss in run.split("eval")["loss"])
        return None

    claim = "skipped, logged, and the parameters stay finite"
    faults.run_trials("bad batches, to be skipped", claim, trial, full=2)


def test_as_many_bad_steps_as_are_allowed(faults, lab, tmp_path):
    def trial(index):
        workdir = tmp_path / f"run-{index}"
        training = lab.training(
            "--config.train.bad_steps=5", prelude=POISON.format(steps={17}, value="nan")
        )
        output = training.finish(workdir, code=3)
        assert "from step 18 to step 22 the loss is nan" in output
        # Neither probed, at 20, nor saved, at 21, while the parameters are not finite.
        assert faults.saved_steps(workdir) == [7, 14]
        assert runs.load(workdir).probe_steps == [0]
        return None

    claim = "ends at the last that is allowed; none is probed or saved"
    faults.run_trials("five bad steps allowed", claim, trial, full=2)


def test_a_learning_rate_that_is_far_too_large(faults, lab, tmp_path):
    def trial(index):
        workdir = tmp_path / f"run-{index}"
        output = lab.training("--config.optimizer.learning_rate=1e30").finish(workdir, code=3)
        assert "training has diverged: from step" in output and "Try a lower" in output
        return None

    faults.run_trials("learning rate of 1e30", "ends with 3 and a diagnosis", trial, full=1)
