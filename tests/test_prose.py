"""Plain English in docstrings and comments, as far as a program can tell it.

CONTRIBUTING.md has the rules; these are the ones that need no judgement.
"""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bottleneck"
FILES = sorted(PACKAGE.rglob("*.py"))

# A docstring starts with a verb or with a noun and its article, never with one of these.
FIRST_WORDS = {"what", "of", "whether", "that", "how", "as", "where", "which", "who", "whose"}
# Words of translated prose, and what a native engineer writes.
WORDS = {
    "anew": "again",
    "go on": "continue",
    "goes on": "continues",
    "going on": "continuing",
    "gone on": "continued",
    "is not there": "is missing",
    "are not there": "are missing",
    "is there": "exists",
    "are there": "exist",
    "so many": "n",
    "heldout": "validation",
    "for ever": "forever",
    "by the logits": "with respect to the logits",
}
LONGEST = 25  # words of a sentence
# A sentence ends at its stop, and before the next entry of a list of names or bullets.
_SENTENCE_END = re.compile(r"(?<=[.!?;:])\s+|\n\s*\n|\n(?=\s*(?:[-*]|[\w, ]+: ))")
_CODE = re.compile(r"``?[^`]*``?|https?://\S+|\([^()]*\)|^\s*(?:>>>|\.\.\.) .*$", re.MULTILINE)


def docstrings(path):
    """(line, text) of every docstring of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text


def comments(path):
    """(line, text) of every block of comments of a file."""
    block, first, last = [], 0, -1
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type != tokenize.COMMENT:
            continue
        line = token.start[0]
        is_alone = token.line.lstrip().startswith("#")
        if block and (line != last + 1 or not is_alone):
            yield first, "\n".join(block)
            block = []
        first = first if block else line
        block.append(token.string.lstrip("# "))
        last = line if is_alone else -1
    if block:
        yield first, "\n".join(block)


def sentences(text):
    for part in _SENTENCE_END.split(_CODE.sub("x", text)):
        yield " ".join(part.split())


def problems(path):
    found = []
    for line, text in docstrings(path):
        first = re.match(r"\W*(\w+)", text)
        if first and first[1].lower() in FIRST_WORDS:
            found.append(f"{line}: a docstring starts with {first[1]!r}")
    for line, text in [*docstrings(path), *comments(path)]:
        for word, better in WORDS.items():
            if re.search(rf"\b{word}\b", _CODE.sub("x", text), re.IGNORECASE):
                found.append(f"{line}: {word!r}; write {better!r}")
        for sentence in sentences(text):
            n_words = len(re.findall(r"[A-Za-z]\w*", sentence))
            if n_words > LONGEST:
                found.append(f"{line}: {n_words} words: {sentence[:60]}…")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_prose_is_plain(path):
    assert problems(path) == []


def test_class_names_are_unique():
    seen = {}
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                seen.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: files for name, files in seen.items() if len(files) > 1} == {}
