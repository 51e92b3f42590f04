"""The table of runs: what each measure is, in exact words, and its value for each run.

`MEASURES` is the one place that says how a column is called, defined and written; the report and
the terminal both read it. R: rank of the head; D: hidden width; σ: singular values of the head.
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

_SCHEMA = {
    "run": pl.String,
    "is_complete": pl.Boolean,
    "d_model": pl.Int64,
    "head_rank": pl.Int64,
    "n_params": pl.Int64,
    "step": pl.Int64,  # of the last held-out evaluation
    "tokens": pl.Int64,  # trained on by then
    "loss": pl.Float64,
    "loss_se": pl.Float64,
    "gap": pl.Float64,
    "gap_se": pl.Float64,
    "relative_loss": pl.Float64,
    "verdict": pl.String,
    "singular_entropy": pl.Float64,
    "effective_rank": pl.Float64,
    "stable_rank": pl.Float64,
    "anisotropy": pl.Float64,
    "tokens_per_second": pl.Float64,
}


@dataclass(frozen=True)
class Measure:
    """A column of the table as people read it."""

    heading: str
    definition: str
    show: Callable[[dict[str, Any]], str]  # from a row of `summary_table`
    in_terminal: bool = True  # which is narrower than a page


def summary_table(runs: Sequence[Run]) -> pl.DataFrame:
    """One row per run, in the order given, with the columns of `_SCHEMA`; null where not measured.

    Losses and gaps are in nats per token, of the last held-out evaluation; spectrum and anisotropy
    are the last probe's. `gap` is the run's loss less that of its full-rank reference (see
    `full_rank_reference`), and `gap_se` its standard error, paired over documents.
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
            **{
                key: probe.get(key) for key in ("singular_entropy", "effective_rank", "stable_rank")
            },
            "anisotropy": probe.get(f"anisotropy/{run.config.model.n_layers}"),
            # The median, as the first steps after each start hold the compilation.
            "tokens_per_second": float(np.median(speeds)) if len(speeds) else None,
        }
        steps, losses = run.series("eval", "step", "loss")
        if len(steps):
            ending = detect_saturation(LossSeries(run.name, steps, losses))
            row["relative_loss"], row["verdict"] = ending.relative, ending.verdict
        reference = full_rank_reference(run, runs)
        if reference is not None:
            full = _last(reference, "eval")
            row["gap"] = evaluation["loss"] - full["loss"]
            row["gap_se"] = _gap_error(run, reference)
        rows.append(row)
    return pl.DataFrame(rows, schema=_SCHEMA)


def _gap_error(run: Run, reference: Run) -> float:
    """Standard error of the difference of two runs' held-out losses, nats/token.

    Document by document where both kept those losses, since what makes a document hard makes it
    hard for both; else as if they had been measured on different texts, which is too large.
    """
    ours, theirs = (r.probe() if r.probe_steps else None for r in (run, reference))
    if (
        ours is None
        or theirs is None
        or ours.document_tokens is None
        or not np.array_equal(ours.document_tokens, theirs.document_tokens)
    ):
        return math.hypot(_last(run, "eval")["loss_se"], _last(reference, "eval")["loss_se"])
    differences = ours.document_losses - theirs.document_losses
    return float(DocumentSums(differences[:, None], ours.document_tokens).standard_errors()[0])


def full_rank_reference(run: Run, runs: Sequence[Run]) -> Run | None:
    """The run that shows what a low rank costs `run`: the same experiment with a full-rank head.

    None where `run` is itself full, or no such run is among `runs`. Seed and optimizer may differ;
    where several will do, one with the same seed comes first.
    """
    if run.is_full_rank:
        return None
    candidates = [r for r in runs if r.is_full_rank and same_but_for_rank(r, run)]
    return min(candidates, key=lambda r: r.config.seed != run.config.seed, default=None)


def same_but_for_rank(one: Run, other: Run) -> bool:
    """Whether a difference in held-out loss between two runs can be put down to their heads' rank.

    It can where model (head apart), data, and training tokens at the last evaluation are the same.
    """

    def experiment(run: Run) -> tuple[Any, ...]:
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

    return _last(one, "eval") != {} and experiment(one) == experiment(other)


def with_error(value: float | None, error: float | None, sign: str = "") -> str:
    """ "4.312 ± 0.011": the error to two digits, the value to as many; "–" where there is none."""
    if value is None:
        return "–"
    if not error or not math.isfinite(error):
        return f"{value:{sign}.3f}"
    decimals = min(max(1 - math.floor(math.log10(error)), 0), 6)
    return f"{value:{sign}.{decimals}f} ± {error:.{decimals}f}"


def print_summary(table: pl.DataFrame, console: Console | None = None) -> None:
    """Prints what `summary_table` returned, in at most 80 columns for names of usual length."""
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
    """The last line of a split, or nothing."""
    rows = run.split(split)
    return rows.row(-1, named=True) if rows.height else {}


def _above_least(row: dict[str, Any]) -> str:
    if row["relative_loss"] is None:
        return "–"
    notable = row["verdict"] not in (None, "does not saturate")
    return f"{row['relative_loss']:.2%}" + (f", {row['verdict']}" if notable else "")


def _number(key: str, form: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: "–" if row[key] is None else format(row[key], form)


MEASURES = (
    Measure(
        "run",
        "The run's folder. A run without a COMPLETE file is marked unfinished; its numbers are "
        "those of its last evaluation and probe so far.",
        lambda row: row["run"] + ("" if row["is_complete"] else " (unfinished)"),
    ),
    Measure(
        "rank\nR/D",
        "R, the rank that the head W = A B can have at most, and D, the width of the hidden "
        "states. R = D is a full-rank head.",
        lambda row: f"{row['head_rank']}/{row['d_model']}",
    ),
    Measure(
        "parameters",
        "N, all parameters, embedding and head included.",
        lambda row: count(row["n_params"]),
        in_terminal=False,
    ),
    Measure(
        "tokens",
        "T, tokens trained on by the time of the last held-out evaluation; a token seen in two "
        "epochs counts twice.",
        lambda row: count(row["tokens"]),
        in_terminal=False,
    ),
    Measure(
        "held-out\nloss",
        "Mean cross-entropy over the same held-out tokens each time, in nats/token "
        "(1 nat = 1.4427 bits), ± the standard error of that mean.",
        lambda row: with_error(row["loss"], row["loss_se"]),
    ),
    Measure(
        "gap to\nfull",
        "Held-out loss less that of the run with a full-rank head and otherwise the same model, "
        "data and number of training tokens, in nats/token, ± the standard error of that difference"
        ", both runs being measured on the same documents.",
        lambda row: with_error(row["gap"], row["gap_se"], sign="+"),
    ),
    Measure(
        "above\nits least",
        "(L_final − L_min)/L_min of the held-out losses so far. “Saturates” stands by it where the "
        "last quarter of them lies above an earlier one by more than noise would have it once in "
        "twenty; fewer than eight are not judged.",
        _above_least,
        in_terminal=False,
    ),
    Measure(
        "singular\nentropy",
        "KL(p‖u) = ln D + Σ pᵢ ln pᵢ in nats, where pᵢ = σᵢ² / Σⱼ σⱼ² over the D singular values "
        "of W and u is uniform. 0: all are equal; ln D: one is all there is. A head of rank R has "
        "at least ln(D/R).",
        _number("singular_entropy", ".3f"),
    ),
    Measure(
        "effective\nrank",
        "exp(−Σ pᵢ ln pᵢ) with pᵢ = σᵢ / Σⱼ σⱼ, which is not squared here (Roy and Vetterli 2007). "
        "Between 1 and R.",
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
        "Mean cosine similarity over all pairs of distinct hidden states, here of the last layer "
        "after the final norm. 0: they point everywhere; 1: all point the same way.",
        _number("anisotropy", ".3f"),
    ),
    Measure(
        "tokens/s",
        "Training tokens per second, the median over the logged steps.",
        lambda row: count(row["tokens_per_second"]),
        in_terminal=False,
    ),
)
