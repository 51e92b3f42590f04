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
import ast
import collections
import concurrent.futures
import contextlib
import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
LEAST_SHARE = 0.85

# The files that are mutated, under bottleneck/.
MUTATED = (
    "probes/*.py",
    "model/loss*.py",
    "analysis/law_*.py",
    "analysis/scaling_law.py",
    "analysis/huber_descent.py",
    "analysis/compute_optimal.py",
    "analysis/rank_law.py",
    "analysis/saturation.py",
    "training/step.py",
    "training/optimizer.py",
    "training/divergence.py",
    "training/checkpoint.py",
    "training/loop.py",
    "training/feed.py",
    "training/reporter.py",
)

# Further tests of a module, under tests/, besides the file of its name. A module with neither is
# tested by all tests of its package.
FURTHER_TESTS: Mapping[str, tuple[str, ...]] = {
    "probes/document_sums.py": ("probes/test_token_sweep.py",),
    "probes/gap.py": ("probes/test_token_sweep.py",),
    "model/loss_chunks.py": ("model/test_loss.py",),
    "model/loss_exponentials.py": ("model/test_loss.py",),
    "analysis/law_bootstrap.py": ("analysis/test_scaling_law.py",),
    "analysis/law_figure.py": ("commands/test_fit.py",),
    "analysis/law_forms.py": ("analysis/test_scaling_law.py", "analysis/test_law_comparison.py"),
    "analysis/law_points.py": ("commands/test_bad_tables.py",),
    "analysis/law_report.py": ("commands/test_fit.py",),
    "analysis/law_study.py": ("commands/test_fit.py",),
    "analysis/huber_descent.py": ("analysis/test_scaling_law.py",),
    "analysis/rank_law.py": ("analysis/test_sweep_analysis.py",),
    "training/divergence.py": ("faults/test_divergence.py",),
    "training/feed.py": ("training/test_resume.py",),
    "training/loop.py": ("training/test_resume.py", "training/test_preemption.py"),
    "training/reporter.py": ("training/test_waiting.py", "training/test_resume.py"),
    "training/step.py": ("training/test_mesh_invariance.py",),
}

# Operators that end in a TypeError if they replace one of the others, so that any test finds them.
_ON_BITS = frozenset({"RShift", "LShift", "BitOr", "BitAnd", "BitXor"})
_OF_IDENTITY = frozenset({"Is", "IsNot"})
# Functions whose arguments are for a reader.
_SPEAKS = frozenset({"print", "warn", "warning", "debug", "info", "error", "exception"})
_ONLY_SHOWS = frozenset({"__repr__", "__str__"})

Position = tuple[int, int]  # line from 1, column from 0 in characters


@dataclasses.dataclass(frozen=True, order=True)
class Mutant:
    """A mutation of one place; `occurrence` counts the places of its operator in the file."""

    file: str
    line: int
    column: int
    operator: str
    occurrence: int


def mutated_files(root: Path = ROOT) -> list[str]:
    """Returns the files that are mutated, relative to the repository."""
    package = root / "bottleneck"
    found = {path for pattern in MUTATED for path in package.glob(pattern)}
    return sorted(path.relative_to(root).as_posix() for path in found)


def tests_of(file: str, root: Path = ROOT) -> tuple[str, ...]:
    """Returns the test files of a module, as pytest takes them.

    Those are the one at the same place under tests/ and those of `FURTHER_TESTS`; if there are
    none, all test files of the nearest folder under tests/ that has some.
    """
    module = PurePosixPath(file).relative_to("bottleneck")
    beside = PurePosixPath("tests") / module.parent / f"test_{module.name}"
    tests = [str(beside)] if (root / beside).exists() else []
    tests += [f"tests/{name}" for name in FURTHER_TESTS.get(str(module), ())]
    folder = root / beside.parent
    while not tests:
        tests = sorted(path.relative_to(root).as_posix() for path in folder.glob("test_*.py"))
        folder = folder.parent
    return tuple(dict.fromkeys(tests))


def spans_without_effect(source: str) -> list[tuple[Position, Position]]:
    """Returns where a file holds docstrings, other strings, annotations, messages and reprs.

    What lies there is for a reader or a type checker, so that no test needs to see a mutation.
    """
    nodes: list[ast.AST | None] = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.JoinedStr() | ast.Constant(value=str() | bytes()):
                nodes.append(node)
            case ast.AnnAssign() | ast.arg():
                nodes.append(node.annotation)
            case ast.FunctionDef():
                nodes.append(node if node.name in _ONLY_SHOWS else node.returns)
            case ast.Raise(exc=ast.Call() as error):
                nodes += [*error.args, *error.keywords]
            case ast.Assert():
                nodes.append(node.msg)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                if name in _SPEAKS:
                    nodes.append(node)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                nodes.append(node)
    lines = source.splitlines()

    def position(line: int, n_bytes: int) -> Position:
        return line, len(lines[line - 1].encode()[:n_bytes].decode())

    return [
        (position(node.lineno, node.col_offset), position(node.end_lineno, node.end_col_offset))  # type: ignore[attr-defined]
        for node in nodes
        if node is not None
    ]


def is_drawn(operator: str) -> bool:
    """Returns False for operators whose mutants are all killed by their type, or none of them is.

    An operation on bits in place of one on numbers is a TypeError. An identity in place of an
    equality is the same for small integers, and for None.
    """
    found = re.fullmatch(
        r"core/Replace(?:Binary|Comparison)Operator_([A-Za-z]+)_([A-Za-z]+)", operator
    )
    kinds = set(found.groups()) if found else set()
    return all(len(kinds & kind) != 1 for kind in (_ON_BITS, _OF_IDENTITY))


def mutants_of(file: str, root: Path = ROOT) -> list[Mutant]:
    """Returns all mutants of a file that have an effect."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    source = (root / file).read_text()
    spans = spans_without_effect(source)
    nodes = list(ast_nodes(get_ast(source)))
    mutants = []
    for name in filter(is_drawn, operator_names()):
        if get_operator(name).arguments():
            continue
        operator = get_operator(name)()
        places = ((node, start) for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, (node, start) in enumerate(places):
            # The bare * of a signature is no product.
            is_star = node.parent is not None and node.parent.type == "parameters"
            if not is_star and not any(begin <= start < end for begin, end in spans):
                mutants.append(Mutant(file, *start, name, occurrence))
    return mutants


def in_random_order(mutants: Iterable[Mutant], seed: int) -> Iterator[Mutant]:
    """Yields one mutant of each place, in an order that the seed alone decides.

    The first places of a longer draw are those of a shorter one. All places are equally likely, so
    that a + with its six replacements does not count six times.
    """
    places = collections.defaultdict(list)
    for mutant in sorted(mutants):
        places[mutant.file, mutant.line, mutant.column].append(mutant)
    order = sorted(places)
    source = random.Random(seed)
    source.shuffle(order)
    for place in order:
        yield source.choice(places[place])


def mutated(mutant: Mutant, root: Path = ROOT) -> str | None:
    """Returns the source with the mutation, None if it is no Python or the same program."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = (root / mutant.file).read_text()
    changed = mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)
    assert changed is not None, mutant
    try:
        is_same = ast.dump(ast.parse(changed)) == ast.dump(ast.parse(source))
        compile(changed, mutant.file, "exec")  # parse lets a `continue` outside of a loop pass
    except SyntaxError:
        return None
    return None if is_same else changed


def changed_lines(before: str, after: str) -> tuple[str, str]:
    """Returns what a mutation removed and what it put there, without indentation."""
    lines = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    removed, added = (
        "\n".join(line[2:].strip() for line in lines if line.startswith(sign)) for sign in "-+"
    )
    return removed, added


@functools.cache
def equivalents() -> dict[tuple[str, str, str], str]:
    """Returns the reasons of the equivalent mutants by file, lines before and lines after."""
    entries = tomllib.loads(EQUIVALENT.read_text()).get("mutant", [])
    return {(entry["file"], entry["before"], entry["after"]): entry["reason"] for entry in entries}


class Copies:
    """Scratch copies of the repository, one for each process, and the programs they compiled."""

    def __init__(self, folder: Path, n_copies: int):
        self._folder = folder
        self._free: queue.Queue[Path] = queue.Queue()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_stopped = False
        ignored = shutil.ignore_patterns(
            ".git", ".venv*", "runs", "build", "dist", "__pycache__", ".*_cache", ".hypothesis"
        )
        for i in range(n_copies):
            copy = folder / f"copy-{i}" / "repository"
            shutil.copytree(ROOT, copy, ignore=ignored)
            self._free.put(copy)

    def run(
        self,
        tests: Sequence[str],
        *,
        change: tuple[str, str] | None = None,
        limit: float | None = None,
        programs: str,
    ) -> tuple[int | None, float, str]:
        """Runs tests in a copy.

        Args:
            change: a file and the source that it has meanwhile.
            limit: seconds after which the tests are stopped.
            programs: "write" keeps what jax compiles, "read" only uses it, "none" does neither.
                Half a program, left by tests that were stopped, would fail all later ones.
        Returns:
            pytest's exit code, None if it was stopped; seconds; the end of what it printed.
        """
        copy = self._free.get()
        name = hashlib.sha256("\n".join(tests).encode()).hexdigest()[:16]
        environment = {
            "PYTHONPATH": str(copy),
            "JAX_COMPILATION_CACHE_DIR": str(self._folder / "programs" / name),
            "JAX_ENABLE_COMPILATION_CACHE": "false" if programs == "none" else "true",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0" if programs == "write" else "1e9",
            "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",
            # A file that changes twice a second would be taken for the one before.
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        options = ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={copy.parent / 'temporary'}"]
        try:
            if self._is_stopped:
                raise SystemExit("stopped")
            if change:
                (copy / change[0]).write_text(change[1])
            start = time.monotonic()
            with tempfile.TemporaryFile() as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", "pytest", *options, *tests],
                    cwd=copy,
                    env=os.environ | environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                self._running.add(process)
                try:
                    code = process.wait(limit)
                except subprocess.TimeoutExpired:
                    code = None
                finally:
                    _kill(process)
                    self._running.discard(process)
                seconds = time.monotonic() - start
                output.seek(0)
                return code, seconds, output.read().decode(errors="replace")[-4000:]
        finally:
            if change:
                shutil.copy2(ROOT / change[0], copy / change[0])
            self._free.put(copy)

    def stop(self) -> None:
        """Kills all tests that run, and starts no more."""
        self._is_stopped = True
        for process in list(self._running):
            _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclasses.dataclass(frozen=True)
class Trial:
    """A mutant that was drawn, and how it is tested."""

    mutant: Mutant
    source: str
    tests: tuple[str, ...]

    @functools.cached_property
    def key(self) -> str:
        """A digest of all that the result follows from, this script left out."""
        patterns = ("bottleneck/**/*.py", "tests/**/conftest.py", "tests/support/*.py", *self.tests)
        files = {path for pattern in patterns for path in ROOT.glob(pattern)} - {Path(__file__)}
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
    mutants = [mutant for file in mutated_files() for mutant in mutants_of(file)]
    trials = (
        Trial(mutant, source, tests_of(mutant.file))
        for mutant in in_random_order(mutants, seed)
        if (source := mutated(mutant)) is not None
    )
    return list(itertools.islice(trials, count))


def try_all(trials: Sequence[Trial], session: Path, n_jobs: int) -> dict[str, dict[str, Any]]:
    """Tries those that have no result yet; returns all results by key.

    Before a mutant, its tests run twice on the original: once to keep the programs that they
    compile, and once with those, to see that they pass and how long they take.
    """
    results = _read(session)
    pending = [trial for trial in trials if trial.key not in results]
    print(f"{len(trials) - len(pending)} of {len(trials)} mutants have a result", flush=True)
    if not pending:
        return results
    session.parent.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as folder,
        concurrent.futures.ThreadPoolExecutor(n_jobs) as pool,
        session.open("a") as file,
    ):
        copies = Copies(Path(folder), n_jobs)
        try:
            sets = list(dict.fromkeys(trial.tests for trial in pending))
            originals = dict(pool.map(lambda tests: (tests, _run_originals(copies, tests)), sets))
            for done in concurrent.futures.as_completed(
                [pool.submit(_try, copies, trial, *originals[trial.tests]) for trial in pending]
            ):
                result = done.result()
                results[result["key"]] = result
                file.write(json.dumps(result) + "\n")
                file.flush()
                print("{outcome:8} {seconds:6.0f} s  {file}:{line}".format(**result), flush=True)
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
