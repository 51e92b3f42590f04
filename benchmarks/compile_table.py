"""The table of TPU slices in the README: what fits, and how fast it could be at best.

python benchmarks/compile_table.py

Compiles the train step of Pythia models at Pythia's batch, 1,024 × 2,048 tokens, each in a process
of its own, for TPUs that are not there; takes minutes a row, and needs libtpu.
Writes results/compile_table.json beside this file and prints the table as Markdown.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "compile_table.json"
RANKS = (None, 512)

# At 410M-like sizes and 4 × 2,048 tokens a device, the compiler gives MaxText 0.2.5 2.27 GB.
YARDSTICK_TEMPORARIES = 1.4e9


@dataclass(frozen=True)
class Row:
    """A model on slices; a micro-batch has 1 to 4 sequences a device."""

    size: str
    topology: str
    accumulation_steps: int
    n_slices: int = 1
    batch_size: int = 1024
    remat: str = "attention"
    rank: int | None = None

    @property
    def name(self) -> str:
        slices = f"{self.n_slices} × " if self.n_slices > 1 else ""
        return f"{self.size.upper()} on {slices}{self.topology}"

    def command(self) -> list[str]:
        """The arguments of `python -m bottleneck` that compile it."""
        return [
            "compile",
            "--train_step_only",
            f"--config=configs/pythia.py:{self.size}",
            f"--topology={self.topology}",
            f"--num_slices={self.n_slices}",
            f"--config.compute.mesh.replica={self.n_slices}",
            f"--config.train.batch_size={self.batch_size}",
            f"--config.compute.accumulation_steps={self.accumulation_steps}",
            f"--config.compute.remat={self.remat}",
            f"--config.model.head_rank={self.rank}",
        ]


MODELS = (
    Row("160m", "v5e:4x4", 16),
    Row("410m", "v5e:4x4", 16),
    Row("1.4b", "v5e:8x8", 4),
    Row("6.9b", "v5e:16x16", 2),
    Row("6.9b", "v6e:8x8", 8),
    Row("12b", "v5p:4x4x4", 4),
    Row("12b", "v5e:16x16", 2, n_slices=2),
)
YARDSTICK = Row("410m", "v5e:4x4", 1, batch_size=64, remat="full")


def rows() -> list[Row]:
    """Each model with each head, and the yardstick."""
    with_heads = [replace(model, rank=rank) for model in MODELS for rank in RANKS]
    return [*with_heads, YARDSTICK]


def compile_row(row: Row) -> dict[str, Any]:
    """What `python -m bottleneck compile --json` says of a row, and the row."""
    command = [sys.executable, "-m", "bottleneck", *row.command(), "--json"]
    run = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
    if run.returncode not in (0, 1) or not run.stdout:
        raise SystemExit(f"{' '.join(row.command())} failed:\n{run.stderr}")
    return {"row": vars(row), "report": json.loads(run.stdout)}


def markdown(results: list[dict[str, Any]]) -> str:
    """A line for each model, both heads side by side, and how the yardstick did."""
    reports = {Row(**result["row"]): result["report"] for result in results}
    heads = ("full head" if rank is None else f"R = {rank}" for rank in RANKS)
    columns = [column for head in heads for column in (f"{head}: fits, peak", "MFU at most")]
    lines = [f"| model and slice | HBM | {' | '.join(columns)} |", "| --- " * 6 + "|"]
    for model in MODELS:
        pair = [reports[row] for rank in RANKS if (row := replace(model, rank=rank)) in reports]
        if pair:
            hbm = f"{pair[0]['chip']['hbm_bytes'] / 1e9:.0f} GB"
            lines.append(f"| {model.name} | {hbm} | {' | '.join(map(_cells, pair))} |")
    if YARDSTICK in reports:
        used = temporaries(reports[YARDSTICK])
        lines += [
            "",
            f"At 410M, 4 × 2,048 tokens a device, full remat, v5e:4x4: {used / 1e9:.2f} GB of "
            f"temporaries, where at most {YARDSTICK_TEMPORARIES / 1e9:.1f} are wanted.",
        ]
    return "\n".join(lines)


def _cells(report: dict[str, Any]) -> str:
    """Whether it fits and its peak | its ceiling on MFU and what makes it."""
    peak = max(program["memory"]["peak"] for program in report["programs"].values())
    verdict = "yes" if report["fits"] else "**no**"
    limits = report["roofline"]
    return f"{verdict}, {peak / 1e9:.1f} GB | {limits['mfu_ceiling']:.0%}, {limits['binds']}"


def temporaries(report: dict[str, Any]) -> int:
    """Bytes of a device that the train step needs beyond its arguments."""
    return report["programs"]["train step"]["memory"]["temporaries"]


def write(results: list[dict[str, Any]]) -> None:
    """Puts the results, with the day and the versions they hold for, into their file."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "libtpu")}
    today = datetime.date.today().isoformat()
    RESULTS.parent.mkdir(exist_ok=True)
    text = json.dumps({"date": today, "versions": versions, "rows": results}, indent=1)
    RESULTS.write_text(text + "\n")


def main() -> int:
    """Returns 1 where a row does not fit or the yardstick takes too much."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name has this in it")
    arguments = parser.parse_args()
    old = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() and arguments.only else []
    done = {Row(**result["row"]): result for result in old}
    results = []
    for row in rows():
        if arguments.only.lower() in row.name.lower():
            print(f"{row.name}, rank {row.rank or 'full'}", file=sys.stderr, flush=True)
            done[row] = compile_row(row)
            results = [done[each] for each in rows() if each in done]
            write(results)
    print(markdown(results))
    good = all(
        result["report"]["fits"]
        and (
            Row(**result["row"]) != YARDSTICK
            or temporaries(result["report"]) <= YARDSTICK_TEMPORARIES
        )
        for result in results
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
