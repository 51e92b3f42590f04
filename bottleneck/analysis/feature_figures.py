"""What the probes say of feature sets, drawn: models of any library side by side.

Figure 2 of the paper is the left panel. A set's numbers come from its probe.json, without jax.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bottleneck import sealed
from bottleneck.analysis.drawing import DISTINCT, WIDTH, log2_ticks, plain, styled
from bottleneck.errors import UserError

PROBE = "probe.json"


def read_probe(folder: Path) -> dict[str, Any]:
    """The record that `features` left in a folder; `UserError` where there is none."""
    if not (folder / PROBE).is_file():
        raise UserError(f"{folder} is not a finished feature set: it has no {PROBE}")
    record = sealed.read(folder / PROBE, "delete it, and `features` makes it anew")
    if not {"model", "anisotropy"} <= record.keys():
        raise UserError(f"{folder / PROBE} is not what `features` writes")
    return record


@styled
def features_figure(folders: Sequence[Path]) -> Figure:
    """Anisotropy against depth, and the gap of the cut head against its rank, of each set."""
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    of_depth, of_rank = figure.subplots(1, 2)
    ranks: list[int] = []
    for i, folder in enumerate(folders):
        record, colour = read_probe(folder), DISTINCT[i % len(DISTINCT)]
        values = np.array(record["anisotropy"])
        depth = np.linspace(0, 1, len(values))
        of_depth.plot(depth, values, color=colour, marker="o", label=plain(record["model"]))
        for kind, line in (("plain", "-"), ("whitened", "--")):
            if kind in record:
                sweep = {name: np.array(some[:-1]) for name, some in record[kind].items()}
                points = (sweep["ranks"], sweep["gap"], sweep["gap_se"])
                of_rank.errorbar(*points, color=colour, ls=line, marker="o")
                ranks += record[kind]["ranks"]
    of_depth.set(xlabel="depth (0: embedding, 1: after the final norm)")
    of_depth.set(ylabel="mean cosine similarity", ylim=(min(0.0, of_depth.get_ylim()[0]), 1.0))
    of_rank.set(xlabel="rank r kept", ylabel="gap to the untruncated head (nats/token)")
    of_rank.set_title("cut by SVD; dashed: after whitening")
    if ranks:
        of_rank.set_xscale("log")
        log2_ticks(of_rank.xaxis, min(ranks), max(ranks))
    figure.legend(loc="outside lower center", ncols=2)
    return figure
