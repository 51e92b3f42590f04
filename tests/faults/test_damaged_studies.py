"""What analyses keep in folders of their own and read again: as written, or refused in one line."""

import jax.numpy as jnp
import numpy as np
import pytest

from bottleneck.errors import UserError
from bottleneck.frozen.features import FeatureManifest, filling, load
from bottleneck.frozen.figures import load_results, rank_laws
from bottleneck.model.head import HeadFactors
from bottleneck.ngrams import counts as ngram_counts
from bottleneck.ngrams.counts import count
from bottleneck.ngrams.spectra import NgramSpectrum, spectrum
from bottleneck.ngrams.windows import Windows
from bottleneck.paper.evals import loss_series, read_evals
from bottleneck.pretrained.series_audit import Audit, left_out_steps
from bottleneck.storage import json_files

WINDOWS = Windows(3, 300)


@pytest.fixture
def tokens():
    return np.minimum(np.random.default_rng(0).zipf(1.3, 8000), 299)


def flip(path, byte, bit=0):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


def same(one, other):
    return all(np.array_equal(getattr(one, k), getattr(other, k)) for k in ngram_counts.TABLE)


@pytest.mark.parametrize("memory", [2e9, 120_000], ids=["one run", "many parts"])
@pytest.mark.parametrize("name", ["starts.bin", "tokens.bin", "counts.bin"])
def test_damaged_counts_are_not_read_again(tmp_path, tokens, name, memory):
    first = count(tokens, WINDOWS, tmp_path, memory=memory)
    assert same(count(tokens, WINDOWS, tmp_path, memory=memory), first)
    path = tmp_path / name
    content = path.read_bytes()
    for byte in (0, len(content) // 2, -1):
        flip(path, byte)
        with pytest.raises(UserError, match=rf"{name} is damaged: its sha256 .* counted again"):
            count(tokens, WINDOWS, tmp_path, memory=memory)
        path.write_bytes(content)
    path.write_bytes(content[:-4])
    with pytest.raises(UserError, match=rf"{name} is damaged: it has [\d,]+ bytes instead of"):
        count(tokens, WINDOWS, tmp_path, memory=memory)
    path.unlink()
    with pytest.raises(UserError, match=rf"{name} is damaged: it is missing"):
        count(tokens, WINDOWS, tmp_path, memory=memory)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"made_of": {}, "other": 1}', "\0" * 9])
def test_a_state_that_no_count_wrote_is_named(tmp_path, tokens, content):
    count(tokens, WINDOWS, tmp_path)
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(UserError, match=r"state\.json is .*counted again") as error:
        count(tokens, WINDOWS, tmp_path)
    assert "\n" not in str(error.value)


def test_a_count_that_was_killed_does_not_go_on_from_damaged_records(tmp_path, tokens, monkeypatch):
    monkeypatch.setattr(ngram_counts, "_merge", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        count(tokens, WINDOWS, tmp_path, memory=120_000)
    monkeypatch.undo()
    path = tmp_path / "runs" / "0003.bin"
    flip(path, 17)
    with pytest.raises(UserError, match=r"0003\.bin is damaged: its records are not those"):
        count(tokens, WINDOWS, tmp_path, memory=120_000)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"0003\.bin is damaged: its records are not those"):
        count(tokens, WINDOWS, tmp_path, memory=120_000)


def test_a_damaged_curve_is_named(tmp_path, tokens):
    path = tmp_path / "curve.npz"
    found = spectrum(tokens, 3, dimensions=20)
    found.save(path)
    np.testing.assert_array_equal(NgramSpectrum.load(path).w_error, found.w_error)
    flip(path, 400)
    with pytest.raises(UserError, match=r"curve\.npz is not a whole .*computed again"):
        NgramSpectrum.load(path)
    np.savez(path, w_error=found.w_error)
    with pytest.raises(UserError, match=r"curve\.npz has no array facts; it has w_error"):
        NgramSpectrum.load(path)


@pytest.fixture
def features(tmp_path):
    rng = np.random.default_rng(0)
    tokens = {"train": 60, "validation": 20}
    manifest = FeatureManifest("made up", 2, 2, 4, 9, 16, "float32", "abc", tokens, 0.0)
    head = HeadFactors(jnp.float32(rng.standard_normal((9, 4))), None)
    with filling(tmp_path / "set", manifest, head) as writer:
        for part, n in tokens.items():
            writer.begin(part, np.arange(n, dtype=np.int32) % 9, np.int32(np.arange(n) // 5))
            writer.append(part, np.float32(rng.standard_normal((n, 4))), np.ones((3, 7)))
    return load(tmp_path / "set")


def read_all(path):
    features = load(path)
    parts = [features.part(name) for name in ("train", "validation")]
    sums = [features.layer_sums(name) for name in ("train", "validation")]
    return parts, sums


@pytest.mark.parametrize(
    "name",
    [
        *(
            f"{part}/{name}"
            for part in ("train", "validation")
            for name in ("hidden.bin", "layers.bin")
        ),
        *("train/tokens.npz", "head.npz", "manifest.json", "COMPLETE"),
    ],
)
def test_a_flip_in_any_file_of_a_feature_set_is_found(features, name):
    read_all(features.path)
    path = features.path / name
    content = path.read_bytes()
    for byte in (30, len(content) // 2) if name.endswith("npz") else (9, len(content) // 2, -9):
        flip(path, byte, bit=1)
        with pytest.raises(UserError, match=rf"{path.name} .*delete the folder") as error:
            read_all(features.path)
        assert "\n" not in str(error.value)
        path.write_bytes(content)
    read_all(features.path)
    path.unlink()
    with pytest.raises(UserError, match=path.name if path.suffix else "is not finished"):
        read_all(features.path)


def test_a_finished_set_is_not_sealed_again_as_it_is_now(features):
    flip(features.path / "train" / "hidden.bin", 5)
    with filling(features.path, features.manifest, features.head) as writer:
        assert writer is None
    again = load(features.path)
    with pytest.raises(UserError, match=r"hidden\.bin is damaged: its sha256"):
        again.part("train")


def test_tokens_of_another_length_are_refused(features):
    validation = features.path / "validation" / "tokens.npz"
    validation.write_bytes((features.path / "train" / "tokens.npz").read_bytes())
    with pytest.raises(UserError, match=r"tokens\.npz does not have the 20 tokens of validation"):
        features.part("validation")


def test_damaged_results_of_frozen_heads_are_named(write_frozen_heads, tmp_path):
    folder = tmp_path / "frozen_heads"
    write_frozen_heads(folder)
    json_files.write(folder / "results.json", load_results(folder))
    assert rank_laws(folder).keys() == {"whitened", "normal"}
    flip(folder / "documents.npz", 500)
    with pytest.raises(UserError, match=r"documents\.npz is not a whole .*makes them again"):
        rank_laws(folder)
    flip(folder / "results.json", 200)
    with pytest.raises(UserError, match=r"results\.json is damaged: .*makes it again"):
        rank_laws(folder)
    (folder / "results.json").write_text('{"cells": []}')
    with pytest.raises(UserError, match=r"results\.json is not what `frozen_heads` writes"):
        rank_laws(folder)


def test_a_damaged_audit_is_named(tmp_path):
    audit = Audit(tmp_path, "a model")
    audit.note(10, "ab12")
    audit.note(20, "cd34")
    audit.note_failure(30, UserError("no such file"))
    assert left_out_steps(tmp_path) == [30]
    path = tmp_path / "audit.json"
    path.write_text(path.read_text().replace("cd34", "ab12"))
    for read in (lambda: Audit(tmp_path, "a model"), lambda: left_out_steps(tmp_path)):
        with pytest.raises(
            UserError, match=r"audit\.json is damaged: its checksum .* audits again"
        ):
            read()
    for content in ("{}", '{"source": "a model", "steps": 3}', '{"source": 1, "steps": {"x": {}}}'):
        path.write_text(content)
        with pytest.raises(UserError, match=r"audit\.json is not an audit"):
            left_out_steps(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        '{"zero_shot": []}',
        '{"zero_shot": {"m": 5}}',
        '{"zero_shot": {"m": [5]}}',
        '{"zero_shot": {"m": [{"step": "ten"}]}}',
        '{"zero_shot": {"m": [{"step": NaN}]}}',
        '{"zero_shot": {"m": [{"step": 1e400}]}}',
        '{"zero_shot": {"m": [{"step": null}]}}',
        "[" * 100_000,
        "\xff",
        "",
    ],
)
def test_a_summary_of_evaluations_of_another_shape_is_one_line(tmp_path, content):
    path = tmp_path / "summary.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"summary\.json") as error:
        read_evals(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["38.06", None, 0, -1.0, float("nan"), float("inf"), [2.0]])
def test_a_perplexity_that_is_none_is_named(value):
    rows = [{"step": 10, "lambada_openai/ppl": value}]
    with pytest.raises(UserError, match=r"have .*/ppl=.* at step 10, which is not a perpl"):
        loss_series("160m", rows)
