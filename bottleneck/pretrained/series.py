"""Measures every checkpoint of a series with the probes of training.

The result is a run folder without checkpoints, which reports and analyses read like any other run.
One step is in memory at a time. The order is from the last step to the first: of steps with equal
weights, the last is measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import jax
from jax.sharding import Mesh

from bottleneck.config import Config, DataConfig, ModelConfig, check_divides
from bottleneck.data.batches import validation_windows
from bottleneck.data.tokenizer import vocab_size_in_file
from bottleneck.data.tokens import prepare
from bottleneck.errors import UserError
from bottleneck.model.accounting import count_parameters
from bottleneck.parallel.mesh import make_mesh
from bottleneck.pretrained.imported_run import TOKENIZER
from bottleneck.pretrained.series_audit import AUDIT, Audit
from bottleneck.pretrained.series_source import Checkpoint, Series
from bottleneck.probes.prober import Prober
from bottleneck.runs import folder as run_folder
from bottleneck.runs.metrics_writer import MetricsWriter
from bottleneck.runs.reading import Run, load
from bottleneck.storage.folders import write_whole, writing
from bottleneck.storage.workspace import check_unused, claimed
from bottleneck.terminal import Progress


def choose(series: Series, steps: list[int], every: int | None) -> list[int]:
    """Returns the requested steps, ascending: those named, multiples of `every`, or all.

    Raises: `UserError` if a named step is missing, or none remains.
    """
    known = list(series.checkpoints)
    for step in steps:
        if step not in series.checkpoints:
            raise UserError(
                f"{series.name} has no step {step}; it has {len(known)}, from {known[0]} to "
                f"{known[-1]}"
            )
    chosen = sorted(set(steps)) if steps else [s for s in known if s % (every or 1) == 0]
    if not chosen:
        raise UserError(f"{series.name} has no step that is a multiple of --every={every}")
    return chosen


def audit_series(series: Series, steps: list[int], workdir: Path) -> Audit:
    """Hashes the weights of each step without measuring; earlier hashes are kept."""
    with claimed(workdir), writing(workdir):
        _existing(workdir)
        audit = Audit(workdir, series.name)
        with Progress("checkpoint", len(steps), unit="items", numbers="reading") as progress:
            for done, step in enumerate(reversed(steps)):
                progress.show(done, f"step {step:,}")
                if not audit.is_settled(step):
                    try:
                        audit.note(step, series.checkpoints[step].digest())
                    except UserError as error:
                        audit.note_failure(step, error)
        return audit


def measure_series(config: Config, series: Series, steps: list[int], workdir: Path) -> Audit:
    """Measures the steps that are not measured yet into a run folder; returns the audit.

    Args:
        config: data, probe, train and compute sections set the measurement; the model section is
            ignored. The default tokenizer is that of the series.
    Raises:
        UserError: if folder, data or devices do not fit. A step that cannot be read is recorded in
            the audit.
    """
    with claimed(workdir), writing(workdir):
        old, audit = _existing(workdir), Audit(workdir, series.name)
        mesh = make_mesh(config.compute.mesh)
        reference = _reference(series, steps, mesh, audit)
        if reference is None:
            return audit
        model = reference.model(mesh) if old is None else old.config.model
        data = _with_tokenizer(config.data, model, series, reference, workdir)
        config = dataclasses.replace(config, data=data, model=model)
        check_divides(config, dict(mesh.shape))
        if old is not None:
            run_folder.check_continues(workdir, config)
        cache = prepare(config.data)
        tokenized_for = series.corpus if config.data.tokenizer is None else None
        if tokenized_for is not None and cache.digest != tokenized_for.digest:
            raise UserError(
                f"{series.name} trained its tokenizer on another corpus; name the one in its token "
                "cache with --config.data.tokenizer=FILE"
            )
        run_folder.check_same_corpus(workdir, cache.digest)
        windows = validation_windows(cache, config.probe.tokens, config.train.sequence_length)
        facts = run_folder.facts(dict(mesh.shape), count_parameters(model), cache)
        run_folder.write_config(workdir, config, facts | {"series": series.name})
        with jax.set_mesh(mesh):
            prober = Prober(config, mesh, windows, cache.unigram_counts())
            _measure(config, series, steps, workdir, mesh, prober, audit)
        if max(measured_steps(workdir), default=-1) >= config.train.steps:
            run_folder.write_text(workdir / run_folder.COMPLETE, "")
        return audit


def measured_steps(workdir: Path) -> set[int]:
    """Returns the steps whose arrays and both lines of scalars exist."""
    run = load(workdir)
    lines = [set(run.split(name)["step"].to_list()) for name in ("eval", "probe")]
    return set(run.probe_steps).intersection(*lines)


def _measure(
    config: Config,
    series: Series,
    steps: list[int],
    workdir: Path,
    mesh: Mesh,
    prober: Prober,
    audit: Audit,
) -> None:
    measured = measured_steps(workdir)
    left = [s for s in reversed(steps) if s not in measured or not audit.is_settled(s)]
    with (
        contextlib.closing(MetricsWriter(workdir, start_step=None)) as writer,
        Progress(
            "checkpoint", len(steps), len(steps) - len(left), unit="items", numbers="reading"
        ) as progress,
    ):
        for done, step in enumerate(left, start=len(steps) - len(left)):
            progress.show(done, f"step {step:,}")
            checkpoint = series.checkpoints[step]
            try:
                _check_same_model(checkpoint.model(mesh), config.model)
                finding = audit.note(step, checkpoint.digest())
                if finding.same_as is not None:
                    progress.say(f"step {step:,} has the weights of step {finding.same_as:,}")
                if finding.same_as is not None or step in measured:
                    continue
                params = checkpoint.load(mesh)
            except UserError as error:
                audit.note_failure(step, error)
                progress.say(f"step {step:,} cannot be read: {error}")
                continue
            try:
                found = prober.measure(params)
            finally:
                for leaf in jax.tree.leaves(params):
                    leaf.delete()  # even if references to it remain
            writer.write_probe(step, step * config.tokens_per_step, found)
            progress.say(f"step {step:,}: {found.headline()}")
        progress.show(len(steps), "")


def _existing(workdir: Path) -> Run | None:
    """Returns the run of an existing series; None in a new folder, or after only an audit.

    Raises: `UserError` if the folder holds something else.
    """
    if not (workdir / run_folder.CONFIG).is_file():
        check_unused(workdir, "a series", known=(AUDIT, TOKENIZER))
        return None
    run = load(workdir)
    if run.series_of is None:
        raise UserError(
            f"--workdir={workdir} holds a run that is not a series; choose a new folder"
        )
    return run


def _reference(series: Series, steps: list[int], mesh: Mesh, audit: Audit) -> Checkpoint | None:
    """Returns the last checkpoint with a readable architecture, the reference for the others."""
    for step in reversed(steps):
        try:
            series.checkpoints[step].model(mesh)
            return series.checkpoints[step]
        except UserError as error:
            audit.note_failure(step, error)
    return None


def _check_same_model(model: ModelConfig, expected: ModelConfig) -> None:
    for name, wanted in vars(expected).items():
        found = getattr(model, name)
        if found != wanted:
            raise UserError(f"it is another model: {name} is {found}, not {wanted}")


def _with_tokenizer(
    data: DataConfig, model: ModelConfig, series: Series, checkpoint: Checkpoint, workdir: Path
) -> DataConfig:
    """Returns the data with the tokenizer of the model, copied into the folder."""
    path = Path(data.tokenizer).expanduser() if data.tokenizer else None
    if path is None and data.corpus != "known_rank" and series.corpus is None:
        path = workdir.absolute() / TOKENIZER
        own = checkpoint.tokenizer()
        if own is None:
            raise UserError(
                f"{series.name} has no {TOKENIZER}; name its tokenizer with "
                "--config.data.tokenizer=FILE"
            )
        if not path.is_file():
            write_whole(path, own.read_bytes())
        data = dataclasses.replace(data, tokenizer=str(path))
    if path is not None and (size := vocab_size_in_file(path)) > model.vocab_size:
        raise UserError(
            f"{path} has {size} tokens, more than the {model.vocab_size} of {series.name}; "
            "name its own with --config.data.tokenizer=FILE"
        )
    return data
