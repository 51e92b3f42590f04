"""Features of a run trained here: against the model itself, and against the run's own probe."""

import dataclasses
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bottleneck import runs
from bottleneck.commands.features import main
from bottleneck.config import base, parse
from bottleneck.data.batches import validation_windows
from bottleneck.data.tokens import prepare
from bottleneck.errors import UserError
from bottleneck.frozen import extraction as features_lib
from bottleneck.frozen.extraction import Request, RunSource, anisotropy_by_layer, make_features
from bottleneck.frozen.features import DTYPES, load
from bottleneck.frozen.figures import PROBE, features_figure
from bottleneck.model import transformer
from bottleneck.probes.gap import FREQUENCY_CLASSES
from bottleneck.runs.probe import Probe
from bottleneck.storage import json_files
from bottleneck.training.loop import train

LENGTH, LAYERS, WIDTH = 16, 2, 16


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of some steps on a language of rank 5."""
    folder = tmp_path_factory.mktemp("features")
    fields = base()
    fields.data.update(corpus="known_rank", language_rank=5, language_tokens=48)
    fields.data.update(language_documents=400, cache_dir=str(folder / "cache"))
    fields.data.validation_fraction = 0.2
    fields.model.update(vocab_size=48, d_model=WIDTH, n_layers=LAYERS, n_heads=2, max_length=LENGTH)
    fields.train.update(steps=30, batch_size=8, sequence_length=LENGTH)
    fields.probe.update(every=30, tokens=1024)
    train(parse(fields), folder / "run")
    return folder / "run"


def request(**changes):
    fields = {"tokens": {"train": 600, "validation": 1024}, "sequence_length": LENGTH}
    fields |= {"layer": LAYERS, "dtype": "float32", "batch_size": 8}
    return Request(**(fields | changes))


@pytest.fixture(scope="module")
def source(workdir):
    """One for all tests, so that it is compiled once for a layer."""
    return RunSource(runs.load(workdir))


@pytest.fixture(scope="module")
def data(workdir):
    return runs.load(workdir).config.data


@pytest.fixture(name="made")
def made_fixture(source, data):
    return lambda path, **changes: make_features(source, data, request(**changes), path)


def every_depth(workdir, inputs):
    """float32 [n_layers + 1, B, L, D] hidden states, from one plain pass."""
    run = runs.load(workdir)
    model = nnx.merge(transformer.graph(run.config.model), run.params())
    return model(jnp.asarray(inputs), observe=lambda hidden: hidden)[1]


def test_a_run_is_read_in_the_dtype_that_it_was_trained_in(workdir):
    run = runs.load(workdir)
    compute = dataclasses.replace(run.config.compute, dtype="bfloat16")
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, compute=compute))
    inputs = np.zeros((1, LENGTH), np.int32)
    hidden, _ = RunSource(run).read(inputs, np.ones((1, LENGTH), np.float32), LAYERS)
    assert hidden.dtype == jnp.bfloat16


@pytest.mark.parametrize("layer", range(LAYERS + 1))
def test_features_are_the_models_hidden_states_and_targets(made, workdir, tmp_path, layer):
    features = made(tmp_path / "set", layer=layer).part("validation")
    cache = prepare(runs.load(workdir).config.data)
    windows = validation_windows(cache, 1024, LENGTH)
    counts = windows["weights"] > 0
    np.testing.assert_array_equal(features.targets, windows["targets"][counts])
    np.testing.assert_array_equal(features.documents, windows["documents"][counts])
    exact = np.asarray(every_depth(workdir, windows["inputs"])[layer])[counts]
    np.testing.assert_allclose(features.hidden, exact, atol=2e-5)


def test_the_training_part_is_of_the_training_split(made, workdir, tmp_path):
    features = made(tmp_path / "set").part("train")
    tokens = prepare(runs.load(workdir).config.data).tokens("train")
    n = len(tokens) - 1
    # 600 tokens are 37 windows of 16, spread evenly.
    starts = [LENGTH * (i * (n // LENGTH) // 37) for i in range(37)]
    exact = np.concatenate([tokens[s + 1 : s + 1 + LENGTH] for s in starts])
    np.testing.assert_array_equal(features.targets, exact)


def test_probes_of_a_feature_set_are_those_of_the_run(made, workdir, tmp_path):
    features = made(tmp_path / "set")
    features_lib.write_probe(features)
    found = Probe.load(tmp_path / "set" / PROBE).arrays()
    expected = runs.load(workdir).probe().arrays()
    # What a feature set has no hidden states of the body, or no training text, to measure.
    missing = {"anisotropy_without_bias", "iso_score", "hidden_top_share", "mean_hidden_norm"}
    missing |= {"whitened_singular_values", "gradient_survival"}
    by_frequency = {f"{k}/{c}" for k in ("plain", "whitened") for c in FREQUENCY_CLASSES}
    assert found.keys() == expected.keys() - missing
    # Its batches are others, and its classes are those of the text itself.
    for name in found.keys() - by_frequency - {"anisotropy_centred"}:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_anisotropy_is_the_mean_cosine_of_all_pairs(made, tmp_path):
    features = made(tmp_path / "set", tokens={"train": 0, "validation": 96}, batch_size=4)
    hidden = np.float64(features.part("validation").hidden)
    units = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
    cosines = units @ units.T
    exact = cosines[~np.eye(len(units), dtype=bool)].mean()
    raw, _ = anisotropy_by_layer(features, "validation")
    assert len(raw) == LAYERS + 1
    assert raw[-1] == pytest.approx(exact, abs=1e-5)
    assert raw[0] != pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_the_bytes_in_half_precision(made, dtype, tmp_path):
    whole, half = made(tmp_path / "a"), made(tmp_path / "b", dtype=dtype)
    assert half.manifest.bytes == whole.manifest.bytes // 2
    precision = float(jnp.finfo(DTYPES[dtype]).eps)
    exact = np.asarray(whole.part("validation").hidden)
    found = np.asarray(half.part("validation").hidden, np.float32)
    np.testing.assert_allclose(found, exact, rtol=precision, atol=1e-6)


class Killed(Exception):
    pass


@pytest.mark.parametrize("torn", [0, 100])
def test_goes_on_where_it_was_killed_and_reads_nothing_twice(made, torn, tmp_path, monkeypatch):
    whole = made(tmp_path / "whole")
    reads, read = [], RunSource.read

    def counted(self, *arguments):
        reads.append(1)
        if len(reads) == 4:  # the first is the check of the head
            raise Killed
        return read(self, *arguments)

    monkeypatch.setattr(RunSource, "read", counted)
    with pytest.raises(Killed):
        made(tmp_path / "set")
    with pytest.raises(UserError, match="is not finished"):
        load(tmp_path / "set")
    with (tmp_path / "set" / "train" / "hidden.bin").open("ab") as file:
        file.write(b"x" * torn)
    again = made(tmp_path / "set")
    assert len(reads) == 4 + 1 + (5 - 2) + 8  # 600 tokens are 5 batches, 1,024 are 8
    for part in ("train", "validation"):
        for name in ("hidden.bin", "layers.bin"):
            assert (again.path / part / name).read_bytes() == (
                whole.path / part / name
            ).read_bytes()


@pytest.mark.parametrize("left", ["manifest.json.draft", "manifest.json"])
def test_a_kill_before_the_first_batch_is_no_reason_to_refuse_the_folder(made, tmp_path, left):
    whole = made(tmp_path / "whole")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / left).write_bytes((whole.path / "manifest.json").read_bytes())
    again = made(tmp_path / "set")
    np.testing.assert_array_equal(again.head.rows, whole.head.rows)
    np.testing.assert_array_equal(again.part("train").hidden, whole.part("train").hidden)


def test_a_finished_set_is_found_and_another_request_refused(made, tmp_path, monkeypatch):
    made(tmp_path / "set")
    monkeypatch.setattr(features_lib, "_write_part", None)
    made(tmp_path / "set")
    with pytest.raises(UserError, match="holds features with layer=2; now layer=1: choose a new"):
        made(tmp_path / "set", layer=1)


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(made, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    small = usage._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: small)
    with pytest.raises(
        UserError, match=r"needs 103,\d+ bytes more and its disk has 1,000; take fewer"
    ):
        made(tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_disk_that_fills_up_keeps_what_is_written(made, tmp_path, monkeypatch):
    whole = made(tmp_path / "whole")
    append, calls = features_lib.FeatureWriter.append, []

    def full(self, part, hidden, layers):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        append(self, part, hidden, layers)

    monkeypatch.setattr(features_lib.FeatureWriter, "append", full)
    with pytest.raises(UserError, match=r"No space left on device; .* what is written stays"):
        made(tmp_path / "set")
    again = made(tmp_path / "set")
    np.testing.assert_array_equal(again.part("train").hidden, whole.part("train").hidden)


def test_a_truncated_file_is_damage_that_is_named(made, tmp_path):
    features = made(tmp_path / "set")
    file = features.path / "validation" / "hidden.bin"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"validation/hidden\.bin is damaged: it has 65,532 bytes"):
        load(tmp_path / "set")


@pytest.mark.parametrize("change", [{"tokens": {"../train": 0}}, {"dtype": "object"}])
def test_a_manifest_of_other_parts_or_types_is_damage(made, tmp_path, change):
    path = made(tmp_path / "set").path / "manifest.json"
    json_files.write(path, json_files.loads(path.read_bytes()) | change)
    with pytest.raises(UserError, match=r"manifest\.json is damaged: it has"):
        load(tmp_path / "set")


def test_heads_of_other_layers_and_heads_that_are_not_linear_are_refused(made, tmp_path):
    made(tmp_path / "last").require_linear_head()
    with pytest.raises(UserError, match=r"holds layer 1 of 2.*take --layer=2"):
        made(tmp_path / "set", layer=1).require_linear_head()
    features = load(tmp_path / "last")
    bent = dataclasses.replace(features.manifest, head_mismatch=0.5)
    with pytest.raises(UserError, match="the head is not a linear map"):
        dataclasses.replace(features, manifest=bent).require_linear_head()


def test_the_mismatch_of_a_head_is_measured(source, data, monkeypatch):
    windows = validation_windows(prepare(data), 64, LENGTH)
    assert features_lib._head_mismatch(source, windows) < 1e-4
    logits = RunSource.logits
    monkeypatch.setattr(RunSource, "logits", lambda self, x: 30 * np.tanh(logits(self, x) / 30))
    assert features_lib._head_mismatch(source, windows) > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 3}, r"--layer=3 is not allowed; .* has 0 to 2"),
        ({"sequence_length": 17}, r"--sequence_length=17 is more than the 16 positions"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_line(made, changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        made(tmp_path / "set", **changes)


def test_the_command_makes_a_set_and_says_its_size(workdir, tmp_path, capsys):
    argv = [str(workdir), f"--output={tmp_path}/set", "--tokens=600", "--validation_tokens=1,024"]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "592 train, 1,024 validation" in said and "GB in float32" in said
    assert (tmp_path / "set" / PROBE).is_file()
    assert (tmp_path / "set" / "features.png").stat().st_size > 10_000
    of_depth, of_rank = features_figure([tmp_path / "set"] * 2).axes
    probe = Probe.load(tmp_path / "set" / PROBE)
    assert [line.get_ydata().tolist() for line in of_depth.lines] == [probe.anisotropy.tolist()] * 2
    assert len(of_rank.containers) == 4  # two sets, plain and whitened
    with pytest.raises(UserError, match="is not a finished feature set"):
        features_figure([tmp_path])
    for wrong, message in (
        (["--transformers"], "needs a corpus"),
        (["--revision=x"], "--revision is for --transformers"),
        (["--tokens=0", "--validation_tokens=0"], "nothing to write"),
        (["--config.seed=1"], "--config.seed overrides a field of --config"),
    ):
        with pytest.raises(UserError, match=message):
            main([str(workdir), f"--output={tmp_path}/other", *wrong])


@pytest.mark.hf
def test_a_model_of_transformers_gives_the_features_that_we_give(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the [hf] extra")
    transformers = pytest.importorskip("transformers", reason="needs the [hf] extra")
    from bottleneck.frozen.transformers_model import TransformersModel
    from bottleneck.pretrained.imported_run import import_run

    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4
    )
    transformers.GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "model")
    import_run(tmp_path / "model", tmp_path / "run")
    theirs, ours = TransformersModel(tmp_path / "model"), RunSource(runs.load(tmp_path / "run"))
    inputs = np.random.default_rng(0).integers(0, 64, (2, 24)).astype(np.int32)
    weights = np.ones(inputs.shape, np.float32)
    np.testing.assert_array_equal(theirs.head.rows, ours.head.rows)
    assert theirs.n_layers == ours.n_layers == 3
    for layer in range(4):
        for found, exact in zip(
            ours.read(inputs, weights, layer), theirs.read(inputs, weights, layer), strict=True
        ):
            np.testing.assert_allclose(found, exact, atol=1e-4)
    np.testing.assert_allclose(ours.logits(inputs), theirs.logits(inputs), atol=1e-4)
