"""The mutation tests: which mutants are drawn, which tests run, and what the report says."""

import re
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor

import mutant_sources
import mutants
import pytest
from mutant_copies import Copies
from mutant_sources import Mutant
from mutants import Trial

SOURCE = '''\
"""1"""
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    x = 2

def area(width: Size[3], height=4, *, unit: Size[5] = 6) -> Size[7]:
    """8"""
    assert width > 9, 10
    if height < 11:
        raise ValueError(12, f"σ is {13}", code=14)
    logging.warning("%d", 15)
    print(16)
    total: Size[17] = 18
    return "µµ²²" * 19, width * 19, f"{20:.3f}"

class Square:
    def __repr__(self):
        return str(21 * self.side)

    def log(self):
        return np.log(22)
'''
SEEN = [4, 6, 9, 11, 18, 19, 19, 22]  # the others are for a reader or a type checker


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of one module, bottleneck/shapes/area.py, and its tests."""
    (tmp_path / "bottleneck/shapes").mkdir(parents=True)
    (tmp_path / "bottleneck/shapes/area.py").write_text("def area(a, b):\n    return a * b + 0\n")
    (tmp_path / "tests/shapes").mkdir(parents=True)
    (tmp_path / "tests/shapes/test_area.py").write_text(
        "from bottleneck.shapes.area import area\ndef test_area():\n    assert area(2, 3) == 6\n"
    )
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    return tmp_path


def trial(source, line=2, column=13):
    """A mutant of the repository's module, whose second line is `source`."""
    mutant = Mutant("bottleneck/shapes/area.py", line, column, "core/Some", 0)
    return Trial(mutant, f"def area(a, b):\n    {source}\n", ("tests/shapes/test_area.py",))


def test_strings_annotations_messages_and_reprs_are_not_mutated():
    spans = mutant_sources.spans_without_effect(SOURCE)
    outside = [
        int(found.group())
        for number, line in enumerate(SOURCE.splitlines(), 1)
        for found in re.finditer(r"\d+", line)
        # Columns count characters: in bytes the string would end four later, beyond its 19.
        if not any(start <= (number, found.start()) < end for start, end in spans)
    ]
    assert outside == SEEN


def test_every_drawn_mutant_is_another_program_and_has_an_effect(tmp_path):
    pytest.importorskip("cosmic_ray", reason="needs the [mutants] extra")
    (tmp_path / "area.py").write_text(SOURCE)
    found = mutant_sources.mutants_of("area.py", tmp_path)
    lines = SOURCE.splitlines()
    numbers = [mutant for mutant in found if mutant.operator == "core/NumberReplacer"]
    for mutant in numbers:
        before, after = mutant_sources.changed_lines(
            SOURCE, mutant_sources.mutated(mutant, tmp_path)
        )
        assert before == lines[mutant.line - 1].strip() != after
    at = {re.match(r"\d+", lines[mutant.line - 1][mutant.column :]).group() for mutant in numbers}
    assert {int(number) for number in at} == set(SEEN)
    # The bare star of the signature is no product, and that of the repr is left out.
    products = {mutant.line for mutant in found if "Operator_Mul_" in mutant.operator}
    assert {lines[line - 1].split()[0] for line in products} == {"return"}
    assert len(products) == 1


def test_a_mutation_that_changes_nothing_or_is_no_python_is_not_drawn(tmp_path):
    pytest.importorskip("cosmic_ray", reason="needs the [mutants] extra")
    (tmp_path / "one.py").write_text("limit = 1e300\nboth = {**left}\nhalf = 0.5\n")
    found = mutant_sources.mutants_of("one.py", tmp_path)
    changed = {mutant: mutant_sources.mutated(mutant, tmp_path) for mutant in found}
    assert {mutant.line for mutant in found} == {1, 2, 3}
    # 1e300 + 1 is 1e300, and {/left} no Python, but {*left} is a set.
    assert {mutant.line for mutant, source in changed.items() if source} == {2, 3}
    assert not any("{/left}" in source for source in changed.values() if source)


@pytest.mark.parametrize(
    ("operator", "is_drawn"),
    [
        ("core/ReplaceBinaryOperator_Add_Sub", True),
        ("core/ReplaceBinaryOperator_BitOr_BitAnd", True),
        ("core/ReplaceBinaryOperator_Add_BitOr", False),
        ("core/ReplaceBinaryOperator_LShift_Mul", False),
        ("core/ReplaceComparisonOperator_Is_IsNot", True),
        ("core/ReplaceComparisonOperator_Eq_Is", False),
        ("core/NumberReplacer", True),
    ],
)
def test_operators_that_only_change_the_type_are_not_drawn(operator, is_drawn):
    assert mutant_sources.is_drawn(operator) is is_drawn


def test_a_draw_takes_each_place_once_in_an_order_of_the_seed():
    every = [
        Mutant("file.py", line, 0, f"core/{i}", 0) for line in range(40) for i in range(1 + line)
    ]
    order = list(mutant_sources.in_random_order(every, seed=1))
    lines, others = (
        [mutant.line for mutant in mutant_sources.in_random_order(every, seed)] for seed in (1, 2)
    )
    assert sorted(lines) == sorted(others) == list(range(40)) != lines != others
    assert order == list(mutant_sources.in_random_order(reversed(every), seed=1))
    assert len({mutant.operator for mutant in order}) > 5


def test_a_module_is_tested_beside_it_then_by_the_table_then_by_its_package(
    repository, monkeypatch
):
    (repository / "tests/shapes/test_round.py").touch()
    (repository / "tests/other").mkdir()
    monkeypatch.setattr(
        mutants,
        "FURTHER_TESTS",
        {"shapes/area.py": ("other/test_a.py",), "shapes/side.py": ("other/test_b.py",)},
    )

    def tests_of(name):
        return mutants.tests_of(f"bottleneck/shapes/{name}.py")

    assert tests_of("area") == ("tests/shapes/test_area.py", "tests/other/test_a.py")
    assert tests_of("side") == ("tests/other/test_b.py",)
    package = ("tests/shapes/test_area.py", "tests/shapes/test_round.py")
    assert tests_of("angle") == package
    assert tests_of("deep/angle") == package


def test_every_pattern_and_every_entry_of_the_tables_names_files_that_exist():
    package = mutants.ROOT / "bottleneck"
    assert [pattern for pattern in mutants.MUTATED if not list(package.glob(pattern))] == []
    assert {f"bottleneck/{name}" for name in mutants.FURTHER_TESTS} <= set(mutants.mutated_files())
    tests = {name for names in mutants.FURTHER_TESTS.values() for name in names}
    assert [name for name in sorted(tests) if not (mutants.ROOT / "tests" / name).exists()] == []


def test_every_equivalent_mutant_is_of_lines_that_exist_and_has_a_reason():
    for entry in tomllib.loads(mutants.EQUIVALENT.read_text()).get("mutant", []):
        lines = (mutants.ROOT / entry["file"]).read_text().splitlines()
        assert set(entry["before"].splitlines()) <= {line.strip() for line in lines}, entry
        assert entry["before"] != entry["after"] and len(entry["reason"]) > 20, entry


def test_tries_leave_the_repository_alone_and_a_second_session_keeps_the_results(
    repository, monkeypatch, capfd
):
    survives, dies = trial("return a * b - 0"), trial("return a + b + 0")
    session = repository / "runs" / "mutants.jsonl"
    before = {path: path.read_bytes() for path in repository.rglob("*.py")}
    results = mutants.try_all([survives, dies], session, n_jobs=2)
    assert results[survives.key]["outcome"] == "survived"
    assert results[dies.key]["outcome"] == "killed"
    assert results[dies.key]["by"] == "tests/shapes/test_area.py::test_area"
    assert {path: path.read_bytes() for path in repository.rglob("*.py")} == before

    whole = session.read_text()
    session.write_text(whole + whole[:40])  # cut off within a line
    monkeypatch.setattr(mutants, "Copies", None)  # nothing runs
    assert mutants.try_all([survives, dies], session, n_jobs=2) == results

    # A result is of the tests and the sources that there were.
    for path in before:
        keys = {Trial(one.mutant, one.source, one.tests).key for one in (survives, dies)}
        assert keys == results.keys()
        path.write_bytes(before[path] + b"# changed\n")
        assert not {trial("return a + b + 0").key} & results.keys()
        path.write_bytes(before[path])


def test_tests_that_fail_without_a_mutation_end_the_session(repository):
    (repository / "tests/shapes/test_area.py").write_text("def test_area():\n    assert False\n")
    with pytest.raises(SystemExit, match=r"tests/shapes/test_area\.py must pass"):
        mutants.try_all([trial("return a + b")], repository / "runs" / "mutants.jsonl", n_jobs=1)


def test_a_copy_holds_the_original_again_after_a_mutant(repository):
    copies = Copies(repository, repository.parent / f"{repository.name}-scratch", 1)
    dies = trial("return a + b + 0")
    change = (dies.mutant.file, dies.source)
    assert copies.run(dies.tests, change=change, programs="none")[0] == 1
    assert copies.run(dies.tests, programs="none")[0] == 0


def test_a_run_that_is_stopped_has_no_result(repository):
    started = repository / "started"
    (repository / "tests/shapes/test_area.py").write_text(
        "from pathlib import Path\n"
        "def test_area():\n"
        f"    Path({str(started)!r}).touch()\n"
        "    while True:\n"
        "        pass\n"
    )
    copies = Copies(repository, repository.parent / f"{repository.name}-scratch", 1)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(copies.run, ["tests/shapes/test_area.py"], programs="none")
        while not started.exists() and not run.done():
            time.sleep(0.05)
        copies.stop()
        with pytest.raises(SystemExit, match="stopped"):
            run.result()
    with pytest.raises(SystemExit, match="stopped"):
        copies.run(["tests/shapes/test_area.py"], programs="none")


def test_tests_that_never_end_kill_the_mutant(repository):
    (repository / "tests/shapes/test_area.py").write_text(
        "def test_area():\n    while True:\n        pass\n"
    )
    copies = Copies(repository, repository.parent / f"{repository.name}-scratch", 1)
    code, _, _ = copies.run(["tests/shapes/test_area.py"], limit=3, programs="none")
    assert code is None


@pytest.mark.parametrize(("n_killed", "is_well"), [(17, True), (16, False)])
def test_equivalents_are_subtracted_and_85_percent_of_the_others_must_be_killed(
    repository, monkeypatch, n_killed, is_well
):
    trials = [trial(f"return a * b + {i}") for i in range(1, 22)]
    outcomes = ["timeout"] + (n_killed - 1) * ["killed"] + (21 - n_killed) * ["survived"]
    results = {one.key: {"outcome": outcome} for one, outcome in zip(trials, outcomes, strict=True)}
    same = (trials[-1].mutant.file, "return a * b + 0", "return a * b + 21")
    monkeypatch.setattr(mutants, "equivalents", lambda: {same: "because"})
    page, is_judged_well = mutants.report(trials, results, seed=5)
    assert is_judged_well is is_well
    assert f"MUTANTS_SEED=5: {n_killed} of 20 killed" in page
    survivors, _, equivalent = page.partition("## Survivors")[2].partition("## Equivalent")
    assert "`bottleneck/shapes/area.py:2`" in survivors
    assert "+    return a * b + 20\n" in survivors and "+ 21\n" not in survivors
    assert "because" in equivalent and "+    return a * b + 21\n" in equivalent


def test_an_entry_of_the_list_that_is_killed_fails(repository, monkeypatch):
    one = trial("return a + b + 0")
    entry = (one.mutant.file, "return a * b + 0", "return a + b + 0")
    results = {one.key: {"outcome": "killed"}}
    monkeypatch.setattr(mutants, "equivalents", dict)
    assert mutants.report([one], results, seed=0)[1]
    monkeypatch.setattr(mutants, "equivalents", lambda: {entry: "because"})
    page, is_well = mutants.report([one], results, seed=0)
    assert not is_well and "though the list calls them equivalent" in page
