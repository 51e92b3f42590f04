"""Mutation testing: small errors put into the code one at a time, to see if a test fails.

cosmic-ray makes the mutants. `make mutants` draws some of them, applies each in a scratch copy of
the repository, and runs the tests beside the mutated file. It writes the share that was killed, and
the diff of each survivor, to runs/mutants.md.

A mutant that no test could tell from the original is listed in equivalent_mutants.toml, with the
reason, and is subtracted. The exit code is 0 if at least `LEAST_SHARE` of the others were killed.
Results are kept in runs/mutants.jsonl, so that a run that was cut off resumes.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
import os
import re
import signal
import sys
import tempfile
import threading
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mutant_copies import Copies
from mutant_sources import Mutant, changed_lines, in_random_order, mutants_of, mutated

ROOT = Path(__file__).parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
LEAST_SHARE = 0.85

# The files that are mutated, under bottleneck/.
MUTATED = (
    "probes/*.py",
    "model/loss.py",
    "model/kernels/loss*.py",
    "laws/[!f_]*.py",  # all but the figure and what the package hands out
    "laws/forms.py",
    "runs/checkpoints.py",
    "training/[!_]*.py",
)

# Further tests of a module, under tests/, besides the file of its name. A module with neither is
# tested by all tests of its package.
FURTHER_TESTS: Mapping[str, tuple[str, ...]] = {
    "laws/comparison.py": ("laws/test_bootstrap.py",),
    "laws/descent.py": ("laws/test_scaling_law.py",),
    "laws/forms.py": ("laws/test_scaling_law.py", "laws/test_comparison.py"),
    "laws/points.py": ("commands/test_bad_tables.py",),
    "laws/report.py": ("commands/test_fit.py",),
    "laws/study.py": ("commands/test_fit.py",),
    "laws/rank.py": ("report/test_rank_law.py",),
    "model/kernels/loss.py": ("model/test_loss.py",),
    "model/kernels/loss_by_rows.py": ("model/test_loss.py",),
    "model/kernels/loss_by_tokens.py": ("model/test_loss.py",),
    "model/kernels/loss_cpu.py": ("model/test_loss.py",),
    "model/kernels/loss_pieces.py": ("model/test_loss.py",),
    "probes/document_sums.py": ("probes/test_token_sweep.py",),
    "probes/gap.py": ("probes/test_token_sweep.py",),
    "probes/programs.py": ("probes/test_prober.py",),
    "probes/vocabulary.py": ("probes/test_token_sweep.py", "probes/test_spectrum.py"),
    "training/divergence.py": ("training/test_reporter.py", "faults/test_divergence.py"),
    "training/feed.py": ("training/test_loop.py",),
    "training/optimizer.py": ("training/test_updates.py",),
    "training/step.py": ("training/test_updates.py",),
}


def mutated_files() -> list[str]:
    """Returns the files that are mutated, relative to the repository."""
    package = ROOT / "bottleneck"
    found = {path for pattern in MUTATED for path in package.glob(pattern)}
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def tests_of(file: str) -> tuple[str, ...]:
    """Returns the test files of a module, as pytest takes them.

    Those are the one at the same place under tests/ and those of `FURTHER_TESTS`; if there are
    none, all test files of the nearest folder under tests/ that has some.
    """
    module = PurePosixPath(file).relative_to("bottleneck")
    beside = PurePosixPath("tests") / module.parent / f"test_{module.name}"
    tests = [str(beside)] if (ROOT / beside).exists() else []
    tests += [f"tests/{name}" for name in FURTHER_TESTS.get(str(module), ())]
    folder = ROOT / beside.parent
    while not tests:
        tests = sorted(path.relative_to(ROOT).as_posix() for path in folder.glob("test_*.py"))
        folder = folder.parent
    return tuple(dict.fromkeys(tests))


@functools.cache
def equivalents() -> dict[tuple[str, str, str], str]:
    """Returns the reasons of the equivalent mutants by file, lines before and lines after."""
    entries = tomllib.loads(EQUIVALENT.read_text()).get("mutant", [])
    return {(entry["file"], entry["before"], entry["after"]): entry["reason"] for entry in entries}


@dataclasses.dataclass(frozen=True)
class Trial:
    """A mutant that was drawn, and how it is tested."""

    mutant: Mutant
    source: str
    tests: tuple[str, ...]

    @functools.cached_property
    def key(self) -> str:
        """A digest of all that the result follows from, these scripts left out."""
        patterns = ("bottleneck/**/*.py", "tests/**/conftest.py", "tests/support/*.py", *self.tests)
        files = {path for pattern in patterns for path in ROOT.glob(pattern)}
        files -= set(Path(__file__).parent.glob("mutant*.py"))
        digest = hashlib.sha256(f"{self.mutant.file} {self.tests} {self.source}".encode())
        for path in sorted(files):
            digest.update(path.read_bytes())
        return digest.hexdigest()

    @functools.cached_property
    def lines(self) -> tuple[str, str]:
        """The lines before and after."""
        return changed_lines((ROOT / self.mutant.file).read_text(), self.source)

    @property
    def reason(self) -> str | None:
        """The reason why no test can kill it, None if there is none on the list."""
        return equivalents().get((self.mutant.file, *self.lines))

    def diff(self) -> str:
        """Returns the mutation as a diff."""
        before = (ROOT / self.mutant.file).read_text().splitlines()
        name = self.mutant.file
        return "\n".join(
            difflib.unified_diff(before, self.source.splitlines(), name, name, lineterm="", n=2)
        )


def draw(count: int, seed: int) -> list[Trial]:
    """Returns the mutants to try."""
    mutants = [mutant for file in mutated_files() for mutant in mutants_of(file, ROOT)]
    trials = (
        Trial(mutant, source, tests_of(mutant.file))
        for mutant in in_random_order(mutants, seed)
        if (source := mutated(mutant, ROOT)) is not None
    )
    return list(itertools.islice(trials, count))


def try_all(trials: Sequence[Trial], session: Path, n_jobs: int) -> dict[str, dict[str, Any]]:
    """Tries those that have no result yet; returns all results by key.

    Mutants of the same tests follow each other. Before them, their tests run twice on the original:
    once to keep the programs that they compile, and once with those, to see that they pass and how
    long they take.
    """
    results = _read(session)
    pending = [trial for trial in trials if trial.key not in results]
    print(f"{len(trials) - len(pending)} of {len(trials)} mutants have a result", flush=True)
    if not pending:
        return results
    groups = collections.defaultdict(list)
    for trial in pending:
        groups[trial.tests].append(trial)
    largest_first = sorted(groups, key=lambda tests: -len(groups[tests]))
    session.parent.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as folder,
        concurrent.futures.ThreadPoolExecutor(n_jobs) as pool,
        session.open("a") as file,
    ):
        copies = Copies(ROOT, Path(folder), n_jobs)
        lock = threading.Lock()

        def try_group(tests: tuple[str, ...]) -> None:
            seconds, programs = _run_originals(copies, tests)
            for trial in groups[tests]:
                result = _try(copies, trial, seconds, programs)
                with lock:
                    results[trial.key] = result
                    file.write(json.dumps(result) + "\n")
                    file.flush()
                print("{outcome:8} {seconds:6.0f} s  {file}:{line}".format(**result), flush=True)

        try:
            for done in concurrent.futures.as_completed(
                [pool.submit(try_group, tests) for tests in largest_first]
            ):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            copies.stop()
            raise
    return results


def _read(session: Path) -> dict[str, dict[str, Any]]:
    """Returns the results of a session by key; a line that was cut off is left out."""
    lines = session.read_text().splitlines(keepends=True) if session.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("}\n")]
    return {result["key"]: result for result in whole}


def _run_originals(copies: Copies, tests: Sequence[str]) -> tuple[float, str]:
    """Returns the seconds that tests take without a mutation, and how they use programs."""
    # Tests that read a program's text cannot do so of one that was kept.
    for programs in (("write", "read"), ("none",)):
        for mode in programs:
            code, seconds, output = copies.run(tests, programs=mode)
            print(f"{'original':8} {seconds:6.0f} s  {' '.join(tests)}", flush=True)
            if code != 0:
                break
        else:
            return seconds, mode
    raise SystemExit(f"{' '.join(tests)} must pass without a mutation:\n{output}")


def _try(copies: Copies, trial: Trial, seconds: float, programs: str) -> dict[str, Any]:
    """Returns the result of one mutant."""
    limit = 60 + 5 * seconds  # a busy machine must not kill mutants
    change = (trial.mutant.file, trial.source)
    code, seconds, output = copies.run(trial.tests, change=change, limit=limit, programs=programs)
    found = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, flags=re.MULTILINE)
    outcome = "survived" if code == 0 else "timeout" if code is None else "killed"
    return {
        "key": trial.key,
        "outcome": outcome,
        "by": found[0] if found and code else None,
        "seconds": round(seconds, 1),
        **dataclasses.asdict(trial.mutant),
    }


def report(
    trials: Sequence[Trial], results: Mapping[str, Mapping[str, Any]], seed: int
) -> tuple[str, bool]:
    """Returns the page, and True if enough were killed and no entry of the list is wrong."""
    outcomes = {trial: results[trial.key]["outcome"] for trial in trials}
    alive = [trial for trial in trials if outcomes[trial] == "survived"]
    same = [trial for trial in alive if trial.reason]
    survivors = [trial for trial in alive if not trial.reason]
    wrong = [trial for trial in trials if trial.reason and trial not in alive]
    n_killed, n_tried = len(trials) - len(alive), len(trials) - len(same)
    is_well = n_killed >= LEAST_SHARE * n_tried and not wrong
    share = f"{n_killed / n_tried:.1%}" if n_tried else "none"
    lines = [
        "# Mutants",
        "",
        f"{len(trials)} mutants, MUTANTS_SEED={seed}: {n_killed} of {n_tried} killed, {share}; "
        f"{LEAST_SHARE:.0%} are asked for. {len(same)} more are equivalent to the original.",
        "",
        "| file | killed | of them by the time limit | survived | equivalent |",
        "|---|---:|---:|---:|---:|",
    ]
    for file in sorted({trial.mutant.file for trial in trials}):
        mine = [trial for trial in trials if trial.mutant.file == file]
        counts = collections.Counter(
            "equivalent" if trial in same else outcomes[trial] for trial in mine
        )
        killed = counts["killed"] + counts["timeout"]
        row = (file, killed, counts["timeout"], counts["survived"], counts["equivalent"])
        lines.append("| " + " | ".join(map(str, row)) + " |")
    for title, group in (
        ("Survivors", survivors),
        ("Equivalent to the original", same),
        ("Killed, though the list calls them equivalent", wrong),
    ):
        lines += ["", f"## {title}"] if group else []
        for trial in group:
            place = f"{trial.mutant.file}:{trial.mutant.line}"
            lines += ["", f"`{place}` ({' '.join(trial.tests)})", *([trial.reason or ""])]
            lines += ["```diff", trial.diff(), "```"]
    return "\n".join(lines) + "\n", is_well


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=100, help="mutants to draw")
    parser.add_argument("--jobs", type=int, default=1, help="tests that run at the same time")
    arguments = parser.parse_args()
    seed = int(os.environ.get("MUTANTS_SEED", "0"))
    print(f"MUTANTS_SEED={seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    trials = draw(arguments.count, seed)
    results = try_all(trials, ROOT / "runs" / "mutants.jsonl", arguments.jobs)
    page, is_well = report(trials, results, seed)
    path = ROOT / "runs" / "mutants.md"
    path.write_text(page)
    print(page.splitlines()[2], f"See {path.relative_to(ROOT)}.")
    sys.exit(not is_well)


if __name__ == "__main__":
    main()
