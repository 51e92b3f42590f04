"""The mutants of a file: which cosmic-ray makes, and which of them are drawn."""

from __future__ import annotations

import ast
import collections
import dataclasses
import difflib
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

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


def mutants_of(file: str, root: Path) -> list[Mutant]:
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


def mutated(mutant: Mutant, root: Path) -> str | None:
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
