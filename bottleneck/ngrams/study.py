"""A folder of n-gram spectra: counts, one .npz file per curve, a manifest and figure 7.

Finished counts and curves are kept, so a stopped study resumes, and one with more curves of the
same text reuses its counts.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bottleneck import __version__
from bottleneck.drawing.style import save
from bottleneck.ngrams.counts import Table, count, plan
from bottleneck.ngrams.figure import Published, figure_7
from bottleneck.ngrams.halves import check_comparable
from bottleneck.ngrams.rows import Estimate
from bottleneck.ngrams.spectra import NgramSpectrum, spectrum_of
from bottleneck.ngrams.windows import Tokens, Windows
from bottleneck.signals import removed
from bottleneck.storage import json_files
from bottleneck.storage.workspace import Workspace

MANIFEST = "manifest.json"
FIGURE = "figure-7.png"
_SHOWN = (512, 1000, 2000, 4000)  # dimensions in the printed table


@dataclass(frozen=True)
class NgramStudy:
    """A request of curves: one for each estimate of each set of windows."""

    windows: Sequence[Windows]
    estimates: Sequence[Estimate]
    dimensions: int
    memory: float  # bytes, beside the libraries
    exact: bool = False
    split_half: bool = False

    def __post_init__(self) -> None:
        for estimate in self.estimates if self.split_half else ():
            check_comparable(estimate)


def carry_out(
    study: NgramStudy, tokens: Tokens, identity: str, folder: Path
) -> list[NgramSpectrum]:
    """Returns all curves of a study; computes those missing in the folder and writes its manifest.

    Args:
        identity: of the tokens, such as their hash; a folder of other tokens is refused.
    Raises: `UserError` if there is no window, or the folder is in use, refused or not writable.
    """
    curves, table_of = folder / "curves", folder / "counts"
    spectra, facts = [], {}
    with Workspace(folder, {"tokens": identity}, "n-gram spectra").opened():
        curves.mkdir(exist_ok=True)
        for windows in study.windows:
            table = None
            for estimate in study.estimates:
                path = curves / f"{_name(windows, estimate)}.npz"
                asked = _asked(study, windows, estimate, identity)
                found = NgramSpectrum.load(path) if path.exists() else None
                if found is None or found.facts.get("asked") != asked:
                    table = table or _counted(study, tokens, windows, identity, table_of)
                    found = _computed(study, table, estimate, folder / "scratch", asked)
                    found.save(path)
                spectra.append(found)
                facts[path.stem] = dict(found.facts)
        contents = {"bottleneck": __version__, "tokens": identity, "curves": facts}
        json_files.write(folder / MANIFEST, contents)
    return spectra


def draw(
    spectra: Sequence[NgramSpectrum], folder: Path, published: Published | None = None
) -> Path:
    """Writes figure 7 of some spectra, with published curves if given; returns its path."""
    return save(figure_7(spectra, published), folder / FIGURE)


def summary(spectra: Sequence[NgramSpectrum]) -> str:
    """Returns a table of W-error and its null at some dimensions, and the d that halves W-error."""
    lines = [f"{'':44}" + "".join(f"{f'd = {d:,}':>18}" for d in _SHOWN) + f"{'halved at':>12}"]
    for one in spectra:
        cells = "".join(_cell(one, d) for d in _SHOWN)
        lines.append(f"{one.label:44}{cells}{one.dimensions(0.5):>12,}")
    within = max(one.facts["w_error_within"] for one in spectra)
    asked = max(one.facts["dimensions"] for one in spectra)
    known = f"known to {within:.1e} up to d = {asked:,}" if within else "exact"
    return "\n".join([*lines, f"W-error (its null: one-hot rows), {known}"])


def _cell(one: NgramSpectrum, d: int) -> str:
    if d >= len(one.w_error):
        return f"{'–':>18}"
    found = f"{'' if one.is_known[d] else '≤ '}{one.w_error[d]:.3f}"
    return f"{found} ({one.null[d]:.3f})".rjust(18)


def _counted(
    study: NgramStudy, tokens: Tokens, windows: Windows, identity: str, folder: Path
) -> Table:
    memory = study.memory / 2
    _say(f"counting: {plan(len(tokens), windows, memory).sentence}")
    table = count(tokens, windows, folder / _slug(windows), memory=memory, identity=identity)
    pairs = f"{len(table.tokens):,} pairs of a context and a next token"
    _say(f"counted {table.n_windows:,} windows: {table.n_contexts:,} contexts, {pairs}")
    return table


def _computed(
    study: NgramStudy, table: Table, estimate: Estimate, scratch: Path, asked: dict[str, Any]
) -> NgramSpectrum:
    memory = f"{study.memory / 1e9:.1f} GB of memory"
    _say(f"{table.windows.n}-grams, {estimate.space}: singular values within {memory}")
    scratch.mkdir(exist_ok=True)
    with removed(scratch):
        how = (study.dimensions, study.memory, study.exact, study.split_half)
        found = spectrum_of(table, estimate, scratch, *how)
    _say(f"from {found.facts['method']}")
    return dataclasses.replace(found, facts={**found.facts, "asked": asked})


def _asked(
    study: NgramStudy, windows: Windows, estimate: Estimate, identity: str
) -> dict[str, Any]:
    """Returns the settings that determine a curve, as JSON has them."""
    return {
        "windows": dataclasses.asdict(windows),
        "estimate": dataclasses.asdict(estimate),
        "tokens": identity,
        "dimensions": study.dimensions,
        "exact": study.exact,
        "split_half": study.split_half,
    }


def _slug(windows: Windows) -> str:
    drawn = "" if windows.sample is None else f"-{windows.sample}-windows-seed-{windows.seed}"
    return f"{windows.n}-grams{drawn}"


def _name(windows: Windows, estimate: Estimate) -> str:
    """Returns a file name with the settings that differ from their defaults."""
    usual = Estimate("log", smoothing=1.0) if estimate.space == "log" else Estimate()
    words = [
        f"{key}-{value}"
        for key, value in dataclasses.asdict(estimate).items()
        if value != getattr(usual, key) or key == "space"
    ]
    return re.sub(r"[^A-Za-z0-9.-]+", "-", "-".join([_slug(windows), *words]))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
