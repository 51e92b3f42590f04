"""The report of runs: one self-contained HTML page, and its figures as PNG and SVG files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from bottleneck.drawing import html
from bottleneck.drawing.html import listed, table, text
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
        for suffix in ("png", "svg"):
            (images / f"{exhibit.name}.{suffix}").unlink(missing_ok=True)
        sentence, curves = exhibit.sentence, {}
        if overlay is not None and exhibit.of_paper:
            sentence, curves = f"{sentence} {exhibit.of_paper} {_READ_OFF}", {"overlay": overlay}
        try:
            figure = exhibit.draw(runs, **curves)
        except NothingToShow as reason:
            left_out.append(f"<p class=note>Left out: {text(exhibit.title)}: {text(reason)}.</p>")
            continue
        shown.append(
            f"<figure id={exhibit.name}><h2>{text(exhibit.title)}</h2>"
            f"{html.picture(figure, exhibit.title, images, exhibit.name)}"
            f"<figcaption>{text(sentence)}</figcaption></figure>"
        )
    title = f"{_title(runs)}: what the rank of the head costs"
    body = _body(runs, "\n".join(shown + left_out))
    target = folder / "report.html"
    write_text(target, html.page(title, body, html.SORTING_STYLE))
    return target


def _body(runs: Sequence[Run], figures: str) -> str:
    rows = summary_table(runs).iter_rows(named=True)
    headings = [measure.heading.replace("\n", " ") for measure in MEASURES]
    summary = table(headings, [[measure.show(row) for measure in MEASURES] for row in rows])
    definitions = "".join(
        f"<dt>{text(measure.heading)}</dt><dd>{text(measure.definition)}</dd>"
        for measure in MEASURES
    )
    differences, shared = _configs(runs)
    return f"""<h1>What the rank of the head costs</h1>
{_opening(runs)}
<div class=summary>{summary}</div>
{figures}
{differences}
<section><h2>Where the numbers come from</h2>{_origin(runs)}</section>
<section><h2>What each number means</h2><dl>{definitions}</dl></section>
<section><details><summary>Config that all runs share</summary>{shared}</details></section>
<script>{html.SORTING_SCRIPT}</script>"""


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


def _configs(runs: Sequence[Run]) -> tuple[str, str]:
    """Returns a section on the fields that differ, empty for one run, and a table of the others."""
    configs = [{key: str(value) for key, value in flatten(run.config).items()} for run in runs]
    differing = [key for key in configs[0] if len({config[key] for config in configs}) > 1]
    shared = [[key, value] for key, value in configs[0].items() if key not in differing]
    rows = [
        [run.name, *(config[key] for key in differing)]
        for run, config in zip(runs, configs, strict=True)
    ]
    answer = table(["run", *differing], rows) if differing else "<p>Their configs are equal.</p>"
    section = f"<section><h2>How the runs differ</h2>{answer}</section>" if len(runs) > 1 else ""
    return section, table(["field", "value"], shared)


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

    groups = itertools.groupby(sorted(runs, key=describe), key=describe)
    return table(
        ["runs", "weights", "corpus", "versions", "mesh (devices)", "git revision"],
        [[listed(run.name for run in group), *described] for described, group in groups],
    )
