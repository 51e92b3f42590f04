"""The report of a set of runs: one self-contained HTML page, and its figures as PNG and SVG files."""

from __future__ import annotations

import base64
import html
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

from bottleneck.analysis.drawing import NothingToShow, save
from bottleneck.analysis.figures import EXHIBITS
from bottleneck.analysis.runs import Run
from bottleneck.analysis.summary import MEASURES, count, summary_table
from bottleneck.config import flatten


def write_report(runs: Sequence[Run], folder: Path) -> Path:
    """Writes `report.html` and `figures/*.png`, `figures/*.svg` into the folder; returns the page's path.

    The page needs nothing beside it and no network: its figures are inside it.
    """
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    shown, left_out = [], []
    for exhibit in EXHIBITS:
        # What an earlier report left here must not be taken for a figure of this one.
        png, svg = (figures / f"{exhibit.name}.{suffix}" for suffix in ("png", "svg"))
        png.unlink(missing_ok=True)
        svg.unlink(missing_ok=True)
        try:
            figure = exhibit.draw(runs)
        except NothingToShow as reason:
            left_out.append(f"<p class=note>Left out: {_text(exhibit.title)}, as {_text(reason)}.</p>")
            continue
        save(figure, png)
        data = base64.b64encode(save(figure, svg).read_bytes()).decode()
        shown.append(
            f"<figure id={exhibit.name}><h2>{_text(exhibit.title)}</h2>"
            f'<img alt="{_text(exhibit.title)}" src="data:image/svg+xml;base64,{data}">'
            f"<figcaption>{_text(exhibit.sentence)}</figcaption></figure>"
        )
    page = folder / "report.html"
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    page.write_text(
        _PAGE.format(
            title=_text(title),
            style=_STYLE,
            opening=_opening(runs),
            summary=_summary(runs),
            figures="\n".join(shown + left_out),
            differences=_differences(runs),
            origin=_origin(runs),
            definitions=_definitions(),
            config=_shared_config(runs),
        )
    )
    return page


def _opening(runs: Sequence[Run]) -> str:
    """One line on what was trained, and one for each run that is not finished."""
    ranks = sorted({run.head_rank for run in runs})
    corpora = sorted({run.config.data.corpus for run in runs})
    lines = [
        f"Head rank {_listed(ranks)}; hidden width "
        f"{_listed(sorted({run.config.model.d_model for run in runs}))}; "
        f"trained on {_listed(corpora)}."
    ]
    for run in runs:
        if not run.is_complete:
            done, planned = run.metrics["step"].max(), run.config.train.steps
            probes = "" if run.probe_steps else ", and has not been probed"
            lines.append(f"{run.name} is unfinished: it stands at step {done} of {planned}{probes}.")
    return "".join(f"<p>{_text(line)}</p>" for line in lines)


def _summary(runs: Sequence[Run]) -> str:
    rows = summary_table(runs).iter_rows(named=True)
    return _table(
        [measure.heading.replace("\n", " ") for measure in MEASURES],
        [[measure.show(row) for measure in MEASURES] for row in rows],
    )


def _definitions() -> str:
    items = (
        f"<dt>{_text(measure.heading)}</dt><dd>{_text(measure.definition)}</dd>"
        for measure in MEASURES
    )
    return f"<dl>{''.join(items)}</dl>"


def _differences(runs: Sequence[Run]) -> str:
    """The config fields in which the runs differ, a row per run."""
    differing = _differing_fields(runs)
    if not differing:
        return "<p>They have the same config.</p>" if len(runs) > 1 else "<p>There is one run.</p>"
    rows = [[run.name, *(str(flatten(run.config)[key]) for key in differing)] for run in runs]
    return _table(["run", *differing], rows)


def _differing_fields(runs: Sequence[Run]) -> list[str]:
    configs = [flatten(run.config) for run in runs]
    return [key for key in configs[0] if len({str(config[key]) for config in configs}) > 1]


def _shared_config(runs: Sequence[Run]) -> str:
    differing = _differing_fields(runs)
    fields = flatten(runs[0].config).items()
    return _table(
        ["field", "value"], [[key, str(value)] for key, value in fields if key not in differing]
    )


def _origin(runs: Sequence[Run]) -> str:
    """Corpus, versions, mesh and revision, with the names of the runs that share them."""

    def describe(run: Run) -> tuple[str, ...]:
        corpus = run.corpus
        return (
            f"{run.config.data.corpus}: {count(corpus.train_tokens)} tokens to train on, "
            f"{count(corpus.heldout_tokens)} held out; unigram entropy "
            f"{corpus.unigram_entropy:.3f} nats/token; {corpus.bytes_per_token:.2f} bytes/token",
            ", ".join(f"{name} {version}" for name, version in run.versions.items()),
            " × ".join(f"{axis} {size}" for axis, size in run.mesh.items()),
            (run.git_revision or "unknown")[:12],
        )

    ordered = sorted(runs, key=describe)
    groups = itertools.groupby(ordered, key=describe)
    return _table(
        ["runs", "corpus", "versions", "mesh (devices)", "git revision"],
        [[_listed(run.name for run in group), *described] for described, group in groups],
    )


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(heading)}</th>" for heading in headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _listed(items: Iterable[object]) -> str:
    """ "a, b and c"."""
    *first, last = map(str, items)
    return f"{', '.join(first)} and {last}" if first else last


def _text(value: object) -> str:
    return html.escape(str(value))


_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #1b1b1b;
  background: #fff; max-width: 1000px; margin: 2.5rem auto 4rem; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.15rem; margin: 0 0 .5rem; }
section { margin-top: 2.75rem; }
p { margin: .25rem 0; max-width: 46rem; }
figure { margin: 2.75rem 0 0; break-inside: avoid; }
figure img { display: block; width: 100%; }
figcaption { max-width: 46rem; margin-top: .5rem; color: #444; font-size: .92rem; }
.note { margin-top: 1.5rem; color: #666; font-size: .92rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .82rem; line-height: 1.35;
  font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; text-align: left; vertical-align: top; }
th { vertical-align: bottom; font-weight: 600; border-bottom: 1.5px solid #1b1b1b; }
td { border-bottom: 1px solid #e4e4e4; }
.summary th + th, .summary td + td { text-align: right; }
.summary td { white-space: nowrap; }
dl { display: grid; grid-template-columns: 9.5rem 1fr; gap: .5rem 1rem; font-size: .92rem; }
dt { font-weight: 600; }
dd { margin: 0; }
summary { cursor: pointer; font-weight: 600; }
@media print { body { max-width: none; margin: 0; } section, tr { break-inside: avoid; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Report: {title}</title>
<style>{style}</style>
</head>
<body>
<h1>What the rank of the head costs: {title}</h1>
{opening}
<div class=summary>{summary}</div>
{figures}
<section><h2>How the runs differ</h2>{differences}</section>
<section><h2>Where the numbers come from</h2>{origin}</section>
<section><h2>What each number means</h2>{definitions}</section>
<section><details><summary>Config that all runs share</summary>{config}</details></section>
</body>
</html>
"""
