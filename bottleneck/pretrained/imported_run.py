"""A released model as a run folder, for everything that reads our own runs.

It has a config, its tokenizer and at least one checkpoint, but neither metrics nor a corpus. One
folder can hold several steps of one training, each a revision on the hub.
"""

from __future__ import annotations

import os
from pathlib import Path

import jax
import numpy as np

from bottleneck.config import Config, DataConfig, MeshConfig, ProbeConfig, TrainConfig
from bottleneck.errors import UserError
from bottleneck.model.accounting import count_parameters
from bottleneck.parallel.mesh import make_mesh
from bottleneck.pretrained.hub import locate
from bottleneck.pretrained.huggingface import from_pretrained
from bottleneck.pretrained.revisions import step_of_revision
from bottleneck.runs import folder as run_folder
from bottleneck.runs.checkpoints import save_params
from bottleneck.runs.reading import load
from bottleneck.sections import flatten
from bottleneck.storage.folders import write_whole, writing
from bottleneck.storage.workspace import check_same, is_unused

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"  # names the tokens that begin and end texts


def import_run(
    path_or_name: str | os.PathLike[str],
    workdir: str | os.PathLike[str],
    *,
    revision: str | None = None,
    step: int | None = None,
) -> int:
    """Writes a released model into a run folder as one checkpoint; returns its step.

    Nothing is written before the whole model has been read.

    Args:
        path_or_name, revision: as for `from_pretrained`.
        workdir: a new folder, or one with other steps of the same model.
        step: None takes the number in a revision or a folder's name like step1000, or 0.
    Raises:
        UserError: if the model cannot be read, or the folder holds another model, or this step with
            other weights.
    """
    source, workdir = locate(path_or_name, revision), Path(workdir).expanduser()
    if step is None:
        step = step_of_revision(revision or source.resolve().name) or 0
    old = None if is_unused(workdir) else load(workdir)
    if old is not None and old.trained_on is not None:
        raise UserError(f"--workdir={workdir} holds a run trained here; choose a new folder")
    here = make_mesh(MeshConfig(fsdp=1), jax.devices("cpu")[:1])
    model, params = from_pretrained(source, mesh=here)
    length = min(model.max_length, 2048)  # of a window that the model has positions for
    config = Config(
        data=DataConfig(tokenizer=str(workdir.absolute() / TOKENIZER)),
        model=model,
        train=TrainConfig(sequence_length=length),
        probe=ProbeConfig(tokens=max(length, ProbeConfig().tokens)),
    )
    if old is not None:
        check_same(workdir, "a model", flatten(old.config.model), flatten(config.model))
        if step in old.steps:
            pairs = zip(jax.tree.leaves(old.params(step)), jax.tree.leaves(params), strict=True)
            if not all(np.array_equal(*pair) for pair in pairs):
                raise UserError(
                    f"--workdir={workdir} has step {step} already, with other weights; choose "
                    "another with --step"
                )
            return step
    parameters = count_parameters(model)
    facts = {
        "mesh": dict(here.shape),
        "parameters": {"total": parameters.total, "non_embedding": parameters.non_embedding},
        "corpus": None,
    }
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        # The config comes first: a folder without one does not count as a run.
        run_folder.write_config(workdir, config, facts)
        for name in (TOKENIZER, TOKENIZER_CONFIG):
            if (source / name).is_file():
                write_whole(workdir / name, (source / name).read_bytes())
        origin = {"imported_from": os.fspath(path_or_name), "revision": revision}
        save_params(workdir / "checkpoints", step, params, origin)
    return step
