"""A write that breaks off leaves nothing under the name of the file, and what was there stays."""

from __future__ import annotations

import contextlib
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from bottleneck.config import Config, ModelConfig
from bottleneck.drawing.style import save
from bottleneck.errors import UserError
from bottleneck.frozen.features import FeatureManifest, filling
from bottleneck.model import transformer
from bottleneck.model.head import HeadFactors
from bottleneck.pretrained.huggingface import save_pretrained
from bottleneck.pretrained.imported_run import import_run
from bottleneck.report.page import write_report
from bottleneck.runs import folder as run_folder
from bottleneck.runs import load

MODEL = dict(vocab_size=50, vocab_multiple=1, d_model=8, n_layers=1, n_heads=2, d_ff=16)


@contextlib.contextmanager
def breaking_off(n_bytes):
    """Every write of a file beyond so many bytes fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_figure_is_there_whole_or_not_at_all(tmp_path, suffix):
    path = tmp_path / f"figure.{suffix}"
    with breaking_off(1000), pytest.raises(UserError, match="cannot write"):
        save(Figure(), path)
    assert not path.exists()
    save(Figure(), path)
    before = path.read_bytes()
    with breaking_off(1000), pytest.raises(UserError, match="cannot write"):
        save(Figure(), path)
    assert path.read_bytes() == before


def test_a_report_is_there_whole_or_not_at_all(tmp_path, undisturbed):
    runs = [load(undisturbed)]
    size = write_report(runs, tmp_path / "whole").stat().st_size
    # Larger than any of its figures, which it holds.
    with breaking_off(size - 1), pytest.raises(UserError, match=r"cannot write .*report\.html"):
        write_report(runs, tmp_path / "torn")
    assert not (tmp_path / "torn" / "report.html").exists()


def test_the_tokens_of_a_feature_set_are_there_whole_or_not_at_all(tmp_path):
    sizes = dict(n_layers=1, d_model=2, vocab_size=3, sequence_length=4, head_mismatch=0.0)
    tokens = {"train": 1000, "validation": 0}
    manifest = FeatureManifest("model", 1, dtype="float32", corpus="", tokens=tokens, **sizes)
    some = np.zeros(1000, np.int32)
    with (
        breaking_off(2000),
        pytest.raises(UserError, match="cannot write"),
        filling(tmp_path / "set", manifest, HeadFactors(jnp.ones((3, 2)), None)) as writer,
    ):
        writer.begin("train", some, some)
    names = {path.name for path in (tmp_path / "set").rglob("*") if path.is_file()}
    assert names == {".lock", "manifest.json", "head.npz"}


def released(folder, seed=0):
    config = ModelConfig(**MODEL, max_length=16, rotary_fraction=0.5)
    save_pretrained(config, transformer.init_params(config, jax.random.key(seed)), folder)
    (folder / "tokenizer.json").write_text(" " * 100_000)
    return folder


def test_the_tokenizer_of_an_imported_run_is_there_whole_or_not_at_all(tmp_path):
    model = released(tmp_path / "model")
    with breaking_off(50_000), pytest.raises(UserError, match=r"cannot write .*tokenizer\.json"):
        import_run(model, tmp_path / "run")
    assert not (tmp_path / "run" / "tokenizer.json").exists()
    import_run(model, tmp_path / "run")  # goes on
    assert load(tmp_path / "run").steps == [0]


def test_an_import_that_was_killed_when_it_was_done_is_done(tmp_path):
    model = released(tmp_path / "model")
    assert [import_run(model, tmp_path / "run") for _ in range(2)] == [0, 0]
    with pytest.raises(UserError, match="has step 0 already, with other weights"):
        import_run(released(tmp_path / "other", seed=1), tmp_path / "run")


def test_what_a_kill_leaves_at_the_very_start_is_not_taken_for_something_else(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    for name in (".lock", ".config.json.draft"):
        (workdir / name).write_text('{"config"')
    run_folder.check_continues(workdir, Config())
    import_run(released(tmp_path / "model"), workdir)
    assert load(workdir).steps == [0]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    with pytest.raises(UserError, match="is not empty and holds no run"):
        run_folder.check_continues(tmp_path / "notes", Config())
