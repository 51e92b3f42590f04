"""An imported model is a run folder: its parameters come back by step, and nothing is mixed up."""

import jax
import numpy as np
import pytest

from bottleneck.__main__ import main
from bottleneck.config import ModelConfig
from bottleneck.errors import UserError
from bottleneck.model import transformer
from bottleneck.pretrained.huggingface import save_pretrained
from bottleneck.pretrained.imported_run import import_run
from bottleneck.runs.reading import load, load_all

MODEL = ModelConfig(vocab_size=97, vocab_multiple=1, d_model=16, n_heads=2, n_layers=2, d_ff=24)


def released(folder, value=0.0, model=MODEL):
    shapes = jax.eval_shape(lambda: transformer.init_params(model, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, value, np.float32), shapes)
    save_pretrained(model, params, folder)
    return folder


def test_steps_of_one_training_become_one_run(tmp_path, capsys):
    for step, value in ((512, 0.5), (1000, 0.25)):
        folder = released(tmp_path / f"step{step}", value)
        (folder / "tokenizer.json").write_text("{}")
        assert main(["import_hf", str(folder), f"--workdir={tmp_path}/run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/run: step 512, 7.06 k parameters",
        f"{tmp_path}/run: step 1000, 7.06 k parameters",
    ]
    run = load(tmp_path / "run")
    assert (run.steps, run.config.model) == ([512, 1000], MODEL)
    assert run.n_params == sum(leaf.size for leaf in jax.tree.leaves(run.params()))
    assert run.config.data.tokenizer == str(tmp_path / "run" / "tokenizer.json")
    for step, value in ((512, 0.5), (1000, 0.25)):
        assert all(np.all(leaf == value) for leaf in jax.tree.leaves(run.params(step)))


def test_an_imported_run_has_no_metrics_and_reports_say_so(tmp_path, make_run):
    import_run(released(tmp_path / "model"), tmp_path / "runs" / "imported")
    run = load(tmp_path / "runs" / "imported")
    assert run.steps == [0] and run.metrics.is_empty()
    assert run.series("eval", "step", "loss")[0].size == 0
    with pytest.raises(UserError, match="its training corpus is unknown"):
        _ = run.corpus
    make_run("runs/trained", steps=50)
    runs, problems = load_all([tmp_path / "runs"])
    assert [run.name for run in runs] == ["trained"]
    assert problems == [f"{tmp_path}/runs/imported was imported and has no metrics"]


def test_a_folder_with_anything_else_is_left_as_it_is(tmp_path, make_run):
    folder = released(tmp_path / "model")
    with pytest.raises(UserError, match="holds a run trained here"):
        import_run(folder, make_run("trained", steps=50))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    with pytest.raises(UserError, match="is not a run folder"):
        import_run(folder, tmp_path / "notes")
    import_run(folder, tmp_path / "run", step=7)
    with pytest.raises(UserError, match="has step 7 already, with other weights"):
        import_run(released(tmp_path / "other", 1.0), tmp_path / "run", step=7)
    wider = ModelConfig(**vars(MODEL) | {"d_ff": 48})
    with pytest.raises(UserError, match="holds a model with d_ff=24; now d_ff=48: choose"):
        import_run(released(tmp_path / "wider", model=wider), tmp_path / "run")
    assert load(tmp_path / "run").steps == [7]


def test_a_model_that_cannot_be_read_leaves_no_folder(tmp_path):
    folder = released(tmp_path / "model")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        import_run(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()
