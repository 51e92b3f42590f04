"""The report of runs: one self-contained HTML page, and its figures as PNG and SVG files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from bottleneck.drawing.html import (
    SORTING_SCRIPT,
    SORTING_STYLE,
    STYLE,
    listed,
    picture,
    table,
    text,
)
from bottleneck.drawing.style import NothingToShow
from bottleneck.pretrained.series_audit import left_out_steps
from bottleneck.report.exhibits import EXHIBITS
from bottleneck.report.figures import Overlay
from bottleneck.report.summary import MEASURES, summary_table
from bottleneck.runs.folder import write_text
from bottleneck.runs.reading import Run
from bottleneck.sections import flatten
from bottleneck.terminal import count

_READ_OFF = "Read off the figures of Godey et al. (2024), for runs as wide as one of their models."
_FEW_STEPS = 6  # more are named as a range


def write_report(runs: Sequence[Run], folder: Path, *, overlay: Overlay | None = None) -> Path:
    """Writes `report.html` and `figures/` into the folder and returns the page's path.

    The page contains its figures and needs no other file and no network.

    Args:
        overlay: curves of Godey et al. 2024 to draw under those of runs of the same width.
    Raises: `UserError` if the folder cannot be written.
    """
    images = folder / "figures"
    images.mkdir(parents=True, exist_ok=True)
    shown, left_out = [], []
    for exhibit in EXHIBITS:
        # A figure of an earlier report must not remain beside this one.
        png, svg = (images / f"{exhibit.name}.{suffix}" for suffix in ("png", "svg"))
        png.unlink(missing_ok=True)
        svg.unlink(missing_ok=True)
        try:
            sentence = exhibit.sentence
            if overlay is not None and exhibit.of_paper:
                figure = exhibit.draw(runs, overlay=overlay)
                sentence += f" {exhibit.of_paper} {_READ_OFF}"
            else:
                figure = exhibit.draw(runs)
        except NothingToShow as reason:
            left_out.append(f"<p class=note>Left out: {text(exhibit.title)}: {text(reason)}.</p>")
            continue
        shown.append(
            f"<figure id={exhibit.name}><h2>{text(exhibit.title)}</h2>"
            f"{picture(figure, exhibit.title, images, exhibit.name)}"
            f"<figcaption>{text(sentence)}</figcaption></figure>"
        )
    page = folder / "report.html"
    write_text(
        page,
        _PAGE.format(
            title=text(_title(runs)),
            style=STYLE + SORTING_STYLE,
            script=SORTING_SCRIPT,
            opening=_opening(runs),
            summary=_summary(runs),
            figures="\n".join(shown + left_out),
            differences=_differences(runs),
            origin=_origin(runs),
            definitions=_definitions(),
            config=_shared_config(runs),
        ),
    )
    return page


def _title(runs: Sequence[Run]) -> str:
    return f"Run {runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs"


def _opening(runs: Sequence[Run]) -> str:
    """Returns a line on all runs, and one for each run that is incomplete."""
    ranks = listed(sorted({run.head_rank for run in runs}))
    widths = listed(sorted({run.config.model.d_model for run in runs}))
    corpora = listed(sorted({run.config.data.corpus for run in runs}))
    verb = "measured" if any(run.series_of for run in runs) else "trained"
    lines = [f"{_title(runs)}: head rank {ranks}, hidden width {widths}, {verb} on {corpora}."]
    for run in runs:
        if missing := left_out_steps(run.path):
            which = f"{len(missing)} steps between {missing[0]} and {missing[-1]}"
            if len(missing) <= _FEW_STEPS:
                which = f"step {listed(missing)}"
            lines.append(
                f"Left out of {run.name}: {which}, with weights of another step or unreadable ones."
            )
        if not run.is_complete:
            done, planned = run.metrics["step"][-1], run.config.train.steps
            probes = "" if run.probe_steps else ", not probed yet"
            lines.append(f"{run.name} is unfinished: step {done} of {planned}{probes}.")
    return "".join(f"<p>{text(line)}</p>" for line in lines)


def _summary(runs: Sequence[Run]) -> str:
    rows = summary_table(runs).iter_rows(named=True)
    return table(
        [measure.heading.replace("\n", " ") for measure in MEASURES],
        [[measure.show(row) for measure in MEASURES] for row in rows],
    )


def _definitions() -> str:
    items = (
        f"<dt>{text(measure.heading)}</dt><dd>{text(measure.definition)}</dd>"
        for measure in MEASURES
    )
    return f"<dl>{''.join(items)}</dl>"


def _differences(runs: Sequence[Run]) -> str:
    """Returns a table of the config fields that differ, a row per run; nothing for one run."""
    if len(runs) == 1:
        return ""
    differing = _differing_fields(runs)
    rows = [[run.name, *(str(flatten(run.config)[key]) for key in differing)] for run in runs]
    answer = table(["run", *differing], rows) if differing else "<p>Their configs are equal.</p>"
    return f"<section><h2>How the runs differ</h2>{answer}</section>"


def _differing_fields(runs: Sequence[Run]) -> list[str]:
    configs = [flatten(run.config) for run in runs]
    return [key for key in configs[0] if len({str(config[key]) for config in configs}) > 1]


def _shared_config(runs: Sequence[Run]) -> str:
    differing = _differing_fields(runs)
    fields = flatten(runs[0].config).items()
    return table(
        ["field", "value"], [[key, str(value)] for key, value in fields if key not in differing]
    )


def _origin(runs: Sequence[Run]) -> str:
    """Returns a table of corpora, versions, meshes and revisions, with the runs of each."""

    def describe(run: Run) -> tuple[str, ...]:
        corpus = run.corpus
        training = "" if run.series_of else f"{count(corpus.train_tokens)} training tokens, "
        sizes = f"{training}{count(corpus.validation_tokens)} validation tokens"
        return (
            f"checkpoints of {run.series_of}" if run.series_of else "trained here",
            f"{run.config.data.corpus}: {sizes}; "
            f"unigram entropy {corpus.unigram_entropy:.3f} nats/token; "
            f"{corpus.bytes_per_token:.2f} bytes/token",
            ", ".join(f"{name} {version}" for name, version in run.versions.items()),
            " × ".join(f"{axis} {size}" for axis, size in run.mesh.items()),
            (run.git_revision or "unknown")[:12],
        )

    ordered = sorted(runs, key=describe)
    groups = itertools.groupby(ordered, key=describe)
    return table(
        ["runs", "weights", "corpus", "versions", "mesh (devices)", "git revision"],
        [[listed(run.name for run in group), *described] for described, group in groups],
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: what the rank of the head costs</title>
<style>{style}</style>
</head>
<body>
<h1>What the rank of the head costs</h1>
{opening}
<div class=summary>{summary}</div>
{figures}
{differences}
<section><h2>Where the numbers come from</h2>{origin}</section>
<section><h2>What each number means</h2>{definitions}</section>
<section><details><summary>Config that all runs share</summary>{config}</details></section>
<script>{script}</script>
</body>
</html>
"""
