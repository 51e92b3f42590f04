"""Results of studies of frozen heads, and figures of them and of feature sets; imports no jax.

L(r) = L∞ + c·r^−p: the law of a start's losses, nats per token; r: rank of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.box
import rich.table
from matplotlib.figure import Figure

from bottleneck.drawing import style
from bottleneck.errors import UserError
from bottleneck.laws.rank import LEAST_RANKS, RankLaw, fit_rank
from bottleneck.runs.probe import Probe
from bottleneck.runs.reading import Run
from bottleneck.storage import json_files
from bottleneck.storage.arrays import read_arrays
from bottleneck.terminal import PlainConsole

RESULTS = "results.json"
DOCUMENTS = "documents.npz"  # sums of each loss over each document, for paired comparisons
PROBE = "probe.npz"  # in the folder of a feature set
GAPS = (0.01, 0.03, 0.1, 0.3)  # nats per token

_LOOK = {
    "whitened": ("#0072b2", "o", "whitened: the model's head, truncated after whitening"),
    "plain": ("#009e73", "s", "plain: the model's head, truncated by SVD"),
    "matched": ("#cc79a7", "^", "matched: random entries with a full head's variance"),
    "normal": ("#d55e00", "D", "normal: random entries, N(0, 1)"),
}


def load_results(folder: Path) -> dict[str, Any]:
    """Returns the results of a finished study; raises `UserError` if the folder holds none."""
    path = folder / RESULTS
    if not path.is_file():
        raise UserError(f"{folder} holds no finished study of frozen heads")
    record = json_files.read(path, "delete it, and `frozen_heads` makes it again")
    if not {"model", "d_model", "optimum_stopped", "cells"} <= record.keys():
        raise UserError(f"{path} is not what `frozen_heads` writes")
    return record


def rank_laws(folder: Path) -> dict[str, RankLaw]:
    """Returns start → the law of its losses, for starts with at least four ranks."""
    record = load_results(folder)
    remedy = f"delete it and {RESULTS}, and `frozen_heads` makes them again"
    arrays = read_arrays(folder / DOCUMENTS, remedy)
    names, losses, tokens = arrays["names"].tolist(), arrays["losses"], arrays["tokens"]
    found = {}
    for start, cells in _by_start(record).items():
        ranks, means = (np.array([cell[name] for cell in cells]) for name in ("rank", "loss"))
        if len(np.unique(ranks)) >= LEAST_RANKS:
            columns = [names.index(f"{start}/{rank}") for rank in ranks]
            found[start] = fit_rank(ranks, means, losses[:, columns], tokens)
    return found


def print_results(folder: Path) -> None:
    """Prints the table and the laws of a study."""
    record = load_results(folder)
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    for name in ("start", "rank", "learning rate", "step", "loss", "gap", "accuracy", "converged"):
        table.add_column(name, justify="left" if name == "start" else "right")
    for cell in record["cells"]:
        table.add_row(
            cell["start"],
            f"{cell['rank']:,}",
            f"{cell['learning_rate']:g}",
            f"{cell['best_step']:,}",
            f"{cell['loss']:.4f} ± {cell['loss_se']:.4f}",
            f"{cell['gap']:+.4f} ± {cell['gap_se']:.4f}",
            f"{cell['accuracy']:.2%}",
            f"{cell['converged_loss']:.4f}",
        )
    console = PlainConsole(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 120
    console.print(table)
    console.print(
        f"validation loss: the model's own head {record['own']:.4f}, the convex optimum "
        f"{record['optimum']:.4f}, stopped early {record['optimum_stopped']:.4f} "
        "(gaps are to the last)"
    )
    fitted = rank_laws(folder)
    for start, cells in _by_start(record).items():
        console.print(f"{start}: {_gaps_in_words(cells)}")
        if start in fitted:
            console.print(f"{start}: {_law_in_words(fitted[start])}")


def _gaps_in_words(cells: list[dict[str, Any]]) -> str:
    """Names the rank below which the gap to the highest rank exceeds each of `GAPS`."""
    ranks, losses = (np.array([cell[name] for cell in cells]) for name in ("rank", "loss"))
    found = {gap: rank_of_gap(ranks, losses - losses[-1], gap) for gap in GAPS}
    parts = [
        f"{gap:g} nat " + ("at no rank" if rank is None else f"below rank {rank:,.1f}")
        for gap, rank in found.items()
    ]
    return f"the gap to rank {ranks[-1]:,} exceeds {', '.join(parts)}"


def rank_of_gap(ranks: np.ndarray, gaps: np.ndarray, gap: float) -> float | None:
    """Returns the rank at which the gap last falls to a level, interpolated linearly in log r.

    Args:
        ranks, gaps: [n], by ascending rank; the last gap is 0.
    Returns: None if no measured gap is larger.
    """
    larger = np.flatnonzero(gaps > gap)
    if not len(larger):
        return None
    i = larger[-1]
    share = (gaps[i] - gap) / (gaps[i] - gaps[i + 1])
    return float(ranks[i] * (ranks[i + 1] / ranks[i]) ** share)


def _law_in_words(law: RankLaw) -> str:
    parts = {"floor": law.floor, "scale": law.scale, "exponent": law.exponent}
    floor, scale, exponent = (
        f"{value:.3g}"
        + ("" if law.intervals is None else " [{:.3g}, {:.3g}]".format(*law.intervals[name]))
        for name, value in parts.items()
    )
    return (
        f"L(r) = L∞ + c·r^−p with L∞ = {floor}, c = {scale}, p = {exponent}, off by at most "
        f"{law.residual:.3f}"
    )


def frozen_heads(runs: Sequence[Run]) -> Figure:
    """Draws the studies in the folders of these runs."""
    places = (f"*/{RESULTS}", f"*/*/{RESULTS}")  # in the run, or in its features
    folders = [p.parent for run in runs for place in places for p in sorted(run.path.glob(place))]
    if not folders:
        raise style.NothingToShow("no run has heads trained on its frozen features")
    return heads_figure(folders)


@style.styled
def heads_figure(folders: Sequence[Path]) -> Figure:
    """Draws loss and accuracy against rank, and loss against W-error, for each study."""
    figure = Figure(figsize=(style.WIDTH, 3.1 * len(folders) + 0.5), layout="constrained")
    rows = figure.subplots(len(folders), 3, squeeze=False)
    for panels, folder in zip(rows, folders, strict=True):
        _draw(panels, load_results(folder), rank_laws(folder))
    shown = dict(zip(*reversed(rows[0][0].get_legend_handles_labels()), strict=True))
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=2)
    return figure


def _draw(panels: Any, record: dict[str, Any], fitted: dict[str, RankLaw]) -> None:
    of_rank, of_accuracy, of_error = panels
    width = record["d_model"]
    lowest = width
    # Later markers are smaller, so equal points show inside each other.
    sizes = iter((8.0, 5.5, 4.0, 3.0))
    for start, cells in _by_start(record).items():
        (colour, marker, label), size = _LOOK[start], next(sizes)
        ranks, losses, errors, accuracy, accuracy_se, w_error = (
            np.array([cell[name] for cell in cells])
            for name in ("rank", "loss", "loss_se", "accuracy", "accuracy_se", "w_error")
        )
        lowest = min(lowest, int(ranks.min()))
        look = {"color": colour, "marker": marker, "ls": "", "mfc": "none", "ms": size}
        of_rank.errorbar(ranks, losses, errors, label=label, **look)
        of_accuracy.errorbar(ranks, 100 * accuracy, 100 * accuracy_se, **look)
        of_error.errorbar(w_error, losses, errors, **look)
        if start in fitted:
            grid = np.geomspace(ranks.min(), width, 100)
            of_rank.plot(grid, fitted[start](grid), color=colour, lw=1)
        if cells[0]["start_loss"] is not None:
            starts = [cell["start_loss"] for cell in cells]
            of_rank.plot(
                ranks, starts, color=colour, lw=1, ls=":", label=f"{start}: before training"
            )
    for panel in (of_rank, of_error):
        panel.axhline(record["optimum_stopped"], color=style.GREY, lw=1, ls=(0, (4, 3)))
    words = {"color": style.GREY, "size": style.SMALL, "va": "baseline"}
    of_rank.text(lowest, record["optimum_stopped"], "best full-rank head\n", **words)
    of_rank.set(xlabel="rank r of the head", ylabel="validation loss (nats/token)", xscale="log")
    of_accuracy.set(xlabel="rank r of the head", ylabel="next token right (%)", xscale="log")
    of_error.set(xlabel="W-error of the model's own head at r")
    of_error.set_ylabel("validation loss (nats/token)")
    for panel in (of_rank, of_accuracy):
        style.log2_ticks(panel.xaxis, lowest, width)
    of_rank.set_title(record["model"])


def _by_start(record: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for cell in record["cells"]:
        found.setdefault(cell["start"], []).append(cell)
    if not found:
        raise UserError("the study has no heads")
    return found


@style.styled
def features_figure(folders: Sequence[Path]) -> Figure:
    """Draws anisotropy against depth, and the gap of the truncated head, of each feature set."""
    from bottleneck.frozen.features import read_manifest  # it imports jax

    figure = Figure(figsize=(style.WIDTH, 4.0), layout="constrained")
    of_depth, of_rank = figure.subplots(1, 2)
    ranks: list[int] = []
    for i, folder in enumerate(folders):
        if not (folder / PROBE).is_file():
            raise UserError(f"{folder} is not a finished feature set: it has no {PROBE}")
        name, probe = read_manifest(folder).model, Probe.load(folder / PROBE)
        colour = style.DISTINCT[i % len(style.DISTINCT)]
        depth = np.linspace(0, 1, len(probe.anisotropy))
        of_depth.plot(depth, probe.anisotropy, color=colour, marker="o", label=style.plain(name))
        for gaps, line in ((probe.plain, "-"), (probe.whitened, "--")):
            if gaps is not None:
                points = (probe.ranks[:-1], gaps.gap[:-1], gaps.gap_se[:-1])
                of_rank.errorbar(*points, color=colour, ls=line, marker="o")
                ranks += probe.ranks.tolist()
    of_depth.set(xlabel="depth (0: embedding, 1: after the final norm)")
    of_depth.set(ylabel="mean cosine similarity", ylim=(min(0.0, of_depth.get_ylim()[0]), 1.0))
    of_rank.set(xlabel="rank r kept", ylabel="gap to the untruncated head (nats/token)")
    of_rank.set_title("truncated by SVD; dashed: after whitening")
    if ranks:
        of_rank.set_xscale("log")
        style.log2_ticks(of_rank.xaxis, min(ranks), max(ranks))
    figure.legend(loc="outside lower center", ncols=2)
    return figure
