"""The audit of a series: finds steps with the weights of other steps, and unreadable ones.

Training changes the weights, so of steps with equal weights at most one is right. Released series
have had such steps: early ones overwritten with late weights. So the latest counts, and the others
are not measured.
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
    """Result of one step: the hash of its weights, or the error."""

    weights: str | None = None  # hexadecimal
    same_as: int | None = None  # another step with these weights, which counts instead
    error: str | None = None


class Audit:
    """Findings of a series by step; each is saved at once."""

    def __init__(self, workdir: Path, source: str):
        """Reads an existing audit; raises `UserError` if it is of another series."""
        self._path, self._source = workdir / AUDIT, source
        self.findings: dict[int, Finding] = {}
        if not self._path.is_file():
            return
        found, self.findings = _read(self._path)
        check_same(workdir, "a series", {"source": found}, {"source": source})

    def note(self, step: int, weights: str) -> Finding:
        """Records the hash of a step, and finds an earlier recorded step with equal weights."""
        own = {s: f.weights for s, f in self.findings.items() if f.same_as is None and s != step}
        twins = [other for other, found in own.items() if found == weights]
        return self._put(step, Finding(weights, same_as=twins[0] if twins else None))

    def note_failure(self, step: int, error: UserError) -> None:
        self._put(step, Finding(error=str(error)))

    def is_settled(self, step: int) -> bool:
        """Returns True if the weights of a step are known to be its own."""
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
    """Prints the flagged steps, and a line with the counts."""
    findings = {step: audit.findings[step] for step in sorted(steps)}
    flagged = {s: f for s, f in findings.items() if f.error or f.same_as is not None}
    if flagged:
        grid = Table(box=None, header_style="bold", pad_edge=False)
        grid.add_column("step", justify="right")
        grid.add_column("weights", no_wrap=True)
        grid.add_column("what is wrong", overflow="fold")
        for step, finding in flagged.items():
            problem = finding.error or f"the weights of step {finding.same_as:,}"
            grid.add_row(f"{step:,}", (finding.weights or "–")[:12], problem)
        console.print(grid)
    failed = audit.n_failed(findings)
    console.print(
        f"{len(findings)} steps: {len(findings) - len(flagged)} with weights of their own, "
        f"{len(flagged) - failed} with those of another, {failed} cannot be read"
    )


def left_out_steps(workdir: Path) -> list[int]:
    """Returns the steps of a series that its curves omit, ascending; empty for other runs."""
    if not (workdir / AUDIT).is_file():
        return []
    _, findings = _read(workdir / AUDIT)
    return [step for step, f in findings.items() if f.error or f.same_as is not None]


def _read(path: Path) -> tuple[str, dict[int, Finding]]:
    """Reads the source and the findings; raises `UserError` if the file is damaged."""
    record = json_files.read(path, "delete it, and the same command audits again")
    try:
        findings = {int(step): Finding(**finding) for step, finding in record["steps"].items()}
        return record["source"], findings
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not an audit ({error}); delete it") from error
