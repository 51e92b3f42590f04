"""The audit of a series: which steps hold whose weights, and which cannot be read.

Released series have had steps with the weights of others: a training moves its weights, so of steps
with the same ones at most one is what it says. The latest of them counts, since the known cases are
early steps that were overwritten with late weights; the others are not measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bottleneck.errors import UserError
from bottleneck.storage import json_files
from bottleneck.storage.workspace import check_same

AUDIT = "audit.json"


@dataclass(frozen=True)
class Finding:
    """What became of one step: its hash, or why it has none."""

    weights: str | None = None  # hexadecimal
    same_as: int | None = None  # another step with these weights, which counts in its stead
    error: str | None = None


class Audit:
    """The findings of a series by step, kept in a file that is whole after every one of them."""

    def __init__(self, workdir: Path, source: str):
        """Reads what is there; raises `UserError` where that is of another series."""
        self._path, self._source = workdir / AUDIT, source
        self.findings: dict[int, Finding] = {}
        if not self._path.is_file():
            return
        found, self.findings = _read(self._path)
        check_same(workdir, "a series", {"source": found}, {"source": source})

    def note(self, step: int, weights: str) -> Finding:
        """Takes the hash of a step, and says whose weights they are."""
        twins = [
            other
            for other, finding in self.findings.items()
            if finding.weights == weights and finding.same_as is None and other != step
        ]
        return self._put(step, Finding(weights, same_as=twins[0] if twins else None))

    def note_failure(self, step: int, error: UserError) -> None:
        self._put(step, Finding(error=str(error)))

    def is_settled(self, step: int) -> bool:
        """Whether the weights of a step are known to be its own."""
        finding = self.findings.get(step, Finding())
        return finding.weights is not None and finding.same_as is None

    def n_failed(self, steps: Iterable[int]) -> int:
        return sum(self.findings[step].error is not None for step in steps)

    def _put(self, step: int, finding: Finding) -> Finding:
        self.findings[step] = finding
        steps = {str(s): dataclasses.asdict(self.findings[s]) for s in sorted(self.findings)}
        json_files.write(self._path, {"source": self._source, "steps": steps})
        return finding


def print_audit(audit: Audit, steps: Iterable[int], console: Console) -> None:
    """Prints the steps that are not what they should be, and a line that counts them all."""
    findings = {step: audit.findings[step] for step in sorted(steps)}
    flagged = {s: f for s, f in findings.items() if f.error or f.same_as is not None}
    if flagged:
        grid = Table(box=None, header_style="bold", pad_edge=False)
        grid.add_column("step", justify="right")
        grid.add_column("weights", no_wrap=True)
        grid.add_column("what is wrong", overflow="fold")
        for step, finding in flagged.items():
            what = finding.error or f"the weights of step {finding.same_as:,}"
            grid.add_row(f"{step:,}", (finding.weights or "–")[:12], what)
        console.print(grid)
    failed = audit.n_failed(findings)
    console.print(
        f"{len(findings)} steps: {len(findings) - len(flagged)} with weights of their own, "
        f"{len(flagged) - failed} with those of another, {failed} cannot be read"
    )


def left_out_steps(workdir: Path) -> list[int]:
    """The steps of a measured series that are not in its curves, ascending; none for other runs."""
    if not (workdir / AUDIT).is_file():
        return []
    _, findings = _read(workdir / AUDIT)
    return [step for step, f in findings.items() if f.error or f.same_as is not None]


def _read(path: Path) -> tuple[str, dict[int, Finding]]:
    """The source and the findings in a file; `UserError` where it is damaged."""
    record = json_files.read(path, "delete it, and the same command audits again")
    try:
        findings = {int(step): Finding(**finding) for step, finding in record["steps"].items()}
        return record["source"], findings
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not an audit ({error}); delete it") from error
