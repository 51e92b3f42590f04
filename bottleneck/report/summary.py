"""The table of runs, and the definition of each column.

`MEASURES` holds the name, definition and format of each column, for the report and the terminal.
R: rank of the head; D: hidden width; σ: singular values of the head.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from bottleneck.laws.saturation import LossSeries, detect_saturation
from bottleneck.probes.document_sums import DocumentSums
from bottleneck.runs.reading import Run
from bottleneck.terminal import PlainConsole, count

_SPECTRUM = ("singular_entropy", "effective_rank", "stable_rank")
_SCHEMA = {
    "run": pl.String,
    "is_complete": pl.Boolean,
    # `step` is that of the last validation loss; `tokens` were trained on by then.
    **dict.fromkeys(("d_model", "head_rank", "n_params", "step", "tokens"), pl.Int64),
    **dict.fromkeys(("loss", "loss_se", "gap", "gap_se", "relative_loss"), pl.Float64),
    "verdict": pl.String,
    **dict.fromkeys((*_SPECTRUM, "anisotropy", "tokens_per_second"), pl.Float64),
}


@dataclass(frozen=True)
class Measure:
    """A column of the table as people read it."""

    heading: str
    definition: str
    show: Callable[[dict[str, Any]], str]  # from a row of `summary_table`
    in_terminal: bool = True  # a terminal is narrower than a page


def summary_table(runs: Sequence[Run]) -> pl.DataFrame:
    """Returns one row per run, in the order given; null marks what was not measured.

    `loss` is the last validation loss, nats per token; `loss_se` is its standard error.
    `gap` is `loss` minus that of the `full_rank_reference`; `gap_se` is paired by document.
    `relative_loss` is (L_final − L_min)/L_min. Spectrum and anisotropy are those of the last probe.
    """
    rows = []
    for run in runs:
        evaluation, probe = _last(run, "eval"), _last(run, "probe")
        (speeds,) = run.series("train", "tokens_per_second")
        row = {
            "run": run.name,
            "is_complete": run.is_complete,
            "d_model": run.config.model.d_model,
            "head_rank": run.head_rank,
            "n_params": run.n_params,
            **{key: evaluation.get(key) for key in ("step", "tokens", "loss", "loss_se")},
            **{key: probe.get(key) for key in _SPECTRUM},
            "anisotropy": probe.get(f"anisotropy/{run.config.model.n_layers}"),
            # The median, because compilation slows the first steps after each start.
            "tokens_per_second": float(np.median(speeds)) if len(speeds) else None,
        }
        steps, losses = run.series("eval", "step", "loss")
        if len(steps):
            ending = detect_saturation(LossSeries(run.name, steps, losses))
            row["relative_loss"], row["verdict"] = ending.relative, ending.verdict
        reference = full_rank_reference(run, runs)
        if reference is not None:
            row["gap"] = evaluation["loss"] - _last(reference, "eval")["loss"]
            row["gap_se"] = _gap_error(run, reference)
        rows.append(row)
    return pl.DataFrame(rows, schema=_SCHEMA)


def _gap_error(run: Run, reference: Run) -> float:
    """Returns the standard error of the difference of two runs' validation losses, nats/token.

    It is paired by document if both kept the losses of the same documents. Otherwise it treats the
    texts as independent, which overestimates it.
    """
    if run.probe_steps and reference.probe_steps:
        ours, theirs = run.probe(), reference.probe()
        tokens = ours.document_tokens
        if tokens is not None and np.array_equal(tokens, theirs.document_tokens):
            differences = ours.document_losses - theirs.document_losses
            return float(DocumentSums(differences[:, None], tokens).standard_errors()[0])
    return math.hypot(_last(run, "eval")["loss_se"], _last(reference, "eval")["loss_se"])


def full_rank_reference(run: Run, runs: Sequence[Run]) -> Run | None:
    """Returns the run of the same experiment with a full-rank head, or None.

    A full-rank `run` has no reference. Seed and optimizer may differ; the same seed is preferred.
    """
    if run.is_full_rank:
        return None
    candidates = [r for r in runs if r.is_full_rank and same_but_for_rank(r, run)]
    return min(candidates, key=lambda r: r.config.seed != run.config.seed, default=None)


def same_but_for_rank(one: Run, other: Run) -> bool:
    """Returns True if only head rank, seed or optimizer can explain a difference in loss."""
    return _last(one, "eval") != {} and experiment(one) == experiment(other)


def experiment(run: Run) -> tuple[Any, ...]:
    """Returns the model apart from the head, the data, and the tokens at the last evaluation."""
    config = run.config.experiment()
    return (
        dataclasses.replace(config.model, head_rank=None, head_init="matched"),
        dataclasses.replace(config.data, cache_dir=""),
        config.compute,
        config.train.sequence_length,
        config.probe.tokens,
        run.corpus,
        _last(run, "eval").get("tokens"),
    )


def with_error(value: float | None, error: float | None, sign: str = "") -> str:
    """Returns "4.312 ± 0.011": the error to two digits, the value to match; "–" for no value."""
    if value is None:
        return "–"
    if not error or not math.isfinite(error):
        return f"{value:{sign}.3f}"
    decimals = min(max(1 - math.floor(math.log10(error)), 0), 6)
    return f"{value:{sign}.{decimals}f} ± {error:.{decimals}f}"


def print_summary(table: pl.DataFrame, console: Console | None = None) -> None:
    """Prints a `summary_table`, at most 80 columns wide for names of usual length."""
    shown = [measure for measure in MEASURES if measure.in_terminal]
    grid = Table(
        box=None, header_style="bold", pad_edge=False, padding=(0, 1), collapse_padding=True
    )
    for index, measure in enumerate(shown):
        grid.add_column(measure.heading, justify="right" if index else "left", no_wrap=index > 0)
    for row in table.iter_rows(named=True):
        grid.add_row(*(measure.show(row) for measure in shown))
    (console or PlainConsole()).print(grid)


def _last(run: Run, split: str) -> dict[str, Any]:
    """Returns the last row of a split; empty if it has no rows."""
    rows = run.split(split)
    return rows.row(-1, named=True) if rows.height else {}


def _above_minimum(row: dict[str, Any]) -> str:
    if row["relative_loss"] is None:
        return "–"
    notable = row["verdict"] not in (None, "does not saturate")
    return f"{row['relative_loss']:.2%}" + (f", {row['verdict']}" if notable else "")


def _number(key: str, form: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: "–" if row[key] is None else format(row[key], form)


MEASURES = (
    Measure(
        "run",
        "The run's folder. An unfinished run has no COMPLETE file; its numbers are from its last "
        "evaluation and probe so far.",
        lambda row: row["run"] + ("" if row["is_complete"] else " (unfinished)"),
    ),
    Measure(
        "rank\nR/D",
        "R, the maximum rank of the head W = A B, and D, the width of the hidden states. R = D is "
        "a full-rank head.",
        lambda row: f"{row['head_rank']}/{row['d_model']}",
    ),
    Measure(
        "parameters",
        "N, all parameters, including embedding and head.",
        lambda row: count(row["n_params"]),
        in_terminal=False,
    ),
    Measure(
        "tokens",
        "T, training tokens at the last evaluation; a token seen in two epochs counts twice.",
        lambda row: count(row["tokens"]),
        in_terminal=False,
    ),
    Measure(
        "validation\nloss",
        "Mean cross-entropy over the same validation tokens each time, in nats/token "
        "(1 nat = 1.4427 bits), ± its standard error.",
        lambda row: with_error(row["loss"], row["loss_se"]),
    ),
    Measure(
        "gap to\nfull",
        "Validation loss minus that of the run with a full-rank head and otherwise the same model, "
        "data and number of training tokens, in nats/token, ± the standard error of the "
        "difference, paired by document.",
        lambda row: with_error(row["gap"], row["gap_se"], sign="+"),
    ),
    Measure(
        "above\nminimum",
        "(L_final − L_min)/L_min of the validation losses so far. A run “saturates” if the last "
        "quarter of them lies above an earlier quarter by more than noise reaches once in twenty. "
        "Fewer than eight losses are not judged.",
        _above_minimum,
        in_terminal=False,
    ),
    Measure(
        "singular\nentropy",
        "KL(p‖u) = ln D + Σ pᵢ ln pᵢ in nats, where pᵢ = σᵢ² / Σⱼ σⱼ² over the D singular values "
        "of W and u is uniform. 0: all are equal; ln D: only one is nonzero. A head of rank R has "
        "at least ln(D/R).",
        _number("singular_entropy", ".3f"),
    ),
    Measure(
        "effective\nrank",
        "exp(−Σ pᵢ ln pᵢ) with pᵢ = σᵢ / Σⱼ σⱼ, not squared (Roy and Vetterli 2007). Between 1 "
        "and R.",
        _number("effective_rank", ".1f"),
    ),
    Measure(
        "stable\nrank",
        "Σ σᵢ² / σ₀², where σ₀ is the largest singular value. Between 1 and R.",
        _number("stable_rank", ".1f"),
        in_terminal=False,
    ),
    Measure(
        "anisotropy",
        "Mean cosine similarity over all pairs of distinct hidden states of the last layer, after "
        "the final norm. 0: directions are spread evenly; 1: all are the same.",
        _number("anisotropy", ".3f"),
    ),
    Measure(
        "tokens/s",
        "Training tokens per second, median over logged steps.",
        lambda row: count(row["tokens_per_second"]),
        in_terminal=False,
    ),
)
