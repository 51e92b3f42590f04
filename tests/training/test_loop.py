"""One run, trained here: what is probed, saved, kept and written at which step, and of what."""

import jax
import numpy as np
import pytest
from flax import nnx
from small_runs import metrics, saved_steps, write_experiment

from bottleneck import runs
from bottleneck.commands.flags import load_config
from bottleneck.data.batches import Batches, validation_windows
from bottleneck.data.tokens import prepare
from bottleneck.model import transformer
from bottleneck.training.loop import train

PEAK_FLOPS = 2e9
# No two of these lists of steps are alike.
SETTINGS = {
    "seed": 3,
    "compute.mesh.replica": -1,  # with fsdp at 1, what compiles soonest
    "compute.mesh.fsdp": 1,
    "model.n_layers": 1,
    "model.head_rank": 6,
    "train.steps": 10,
    "train.log_every": 3,
    "compute.peak_flops": PEAK_FLOPS,
    "probe.every": 7,
    "probe.tokens": 300,
    "probe.ranks": (4,),
    "checkpoint.every": 4,
    "checkpoint.keep_last": 1,
    "checkpoint.keep_every": 8,
    "checkpoint.steps": (0, 2, 5),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder of the run, its config, parameters and batch → `mean_cross_entropy`)."""
    folder = tmp_path_factory.mktemp("loop")
    config = load_config(str(write_experiment(folder, SETTINGS)), {})
    train(config, folder / "run")
    model = jax.jit(
        lambda params, inputs: nnx.merge(transformer.graph(config.model), params)(inputs)[0]
    )

    def loss(params, tokens):
        head = nnx.merge(transformer.graph(config.model), params).head.factors()
        logits = head.logits(model(params, tokens["inputs"]))[..., :300]
        return mean_cross_entropy(np.asarray(logits, np.float64), tokens)

    return folder / "run", config, loss


def mean_cross_entropy(logits, tokens):
    """Over the targets that count."""
    found = np.take_along_axis(logits, tokens["targets"][..., None], axis=-1)[..., 0]
    losses = np.log(np.exp(logits).sum(axis=-1)) - found
    return (losses * tokens["weights"]).sum() / tokens["weights"].sum()


def test_each_thing_happens_at_the_steps_that_its_field_names(run):
    workdir = run[0]
    happened = {
        split: sorted(step for step, found in metrics(workdir) if found == split)
        for split in ("train", "eval", "probe", "time")
    }
    assert happened == {
        "train": [3, 6, 9, 10],
        "eval": [0, 7, 10],
        "probe": [0, 7, 10],
        "time": [10],
    }
    assert runs.load(workdir).probe_steps == [0, 7, 10]
    # Saved were 0, 2, 4, 5, 8 and 10; of those the last stays, a multiple of 8, and what is named.
    assert saved_steps(workdir) == [0, 2, 5, 8, 10]


def test_a_step_trains_on_the_batch_of_its_number(run):
    workdir, config, loss_of = run
    batches = Batches(prepare(config.data), batch_size=4, sequence_length=32, seed=3)
    for saved in (2, 5, 8):
        loss = loss_of(runs.load(workdir).params(saved), batches.batch(saved))
        # float32 losses of some 5 nats; another batch differs by some 1e-2.
        assert metrics(workdir)[saved + 1, "train"]["loss"] == pytest.approx(loss, rel=1e-5)


def test_a_probe_measures_the_parameters_of_its_step_on_the_tokens_held_out(run):
    workdir, config, loss_of = run
    tokens = validation_windows(prepare(config.data), 300, 32)
    assert tokens["weights"].sum() == 9 * 32
    for step in (0, 10):
        loss = loss_of(runs.load(workdir).params(step), tokens)
        assert metrics(workdir)[step, "eval"]["loss"] == pytest.approx(loss, rel=1e-5)


def test_utilisation_is_of_the_peak_of_all_devices(run):
    workdir = run[0]
    layers, head = 12 * 32 * 32, 6 * (32 + 384)  # 300 tokens, padded
    attention = 2 * 2 * 32 * 32 / 2
    flops = 3 * (2 * layers + 2 * head + attention)
    rows = runs.load(workdir).split("train")
    np.testing.assert_allclose(
        rows["mfu"] / rows["tokens_per_second"], flops / (jax.device_count() * PEAK_FLOPS)
    )


def test_the_time_of_a_run_is_booked_under_its_reasons(run):
    (row,) = runs.load(run[0]).split("time").to_dicts()
    booked = {name for name in row if name.endswith("_seconds")}
    assert booked == {f"{reason}_seconds" for reason in ("compile", "data", "probe", "checkpoint")}
    assert 0 < sum(row[name] for name in booked) <= row["seconds"]
