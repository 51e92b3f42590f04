"""Measure spectra of a text's n-gram matrices, contexts × next tokens (figure 7).

The text is the corpus of --config, tokenized as for training, or an array of token ids in a .npy
file. Repeat the command to resume after an interruption.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING

from bottleneck.commands.flags import parse_command
from bottleneck.commands.parsing import Parser, listed, option, real, switch, whole
from bottleneck.errors import UserError

if TYPE_CHECKING:
    from bottleneck.ngrams.windows import Tokens

_LIBRARIES = 0.5  # GB of memory that the program takes before it has an array
_HASHED = 2**24  # tokens at a time


def main(argv: list[str]) -> int:
    parser = _parser()
    if any(argument.split("=")[0] == "--ids" for argument in argv):
        flags, config = parser.parse_args(argv), None
    else:
        flags, config = parse_command(parser, argv)
    if flags.memory <= 2 * _LIBRARIES:
        raise UserError(
            f"--memory={flags.memory:g} is not allowed; it must be above {2 * _LIBRARIES:g} GB"
        )
    if flags.end_of_text is not None and config is not None:
        raise UserError("--end_of_text is for --ids; with --config the tokenizer has its own")

    from bottleneck import ngrams
    from bottleneck.paper.curves import w_errors

    smoothing = flags.smoothing
    if smoothing is None:
        smoothing = 1.0 if flags.space == "log" else 0.0
    how = (flags.space, flags.weighting, smoothing, flags.min_count)
    estimates = [ngrams.Estimate(*how, c, flags.seed) for c in flags.contexts or [None]]
    tokens: Tokens
    if config is None:
        tokens, identity = _stored(flags.ids)
        vocab_size, end_of_text = ngrams.largest_id(tokens) + 1, flags.end_of_text
    else:
        from bottleneck.data.tokens import prepare

        cache = prepare(config.data)
        tokens, identity = cache.tokens("train"), cache.digest
        vocab_size, end_of_text = cache.vocab_size, cache.end_of_text
    windows = [
        ngrams.Windows(n, vocab_size, end_of_text, sample, flags.seed)
        for n, sample in itertools.product(flags.n, flags.windows or [None])
    ]
    memory = (flags.memory - _LIBRARIES) * 1e9
    cost = (flags.dimensions, memory, flags.exact, flags.split_half)
    study = ngrams.NgramStudy(windows, estimates, *cost)
    spectra = ngrams.carry_out(study, tokens, identity, flags.output)
    print(ngrams.summary(spectra))
    published = w_errors() if flags.paper else None
    print(f"\nfigure: {ngrams.draw(spectra, flags.output, published)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser("python -m bottleneck ngrams", description=__doc__, allow_abbrev=False)
    option(parser, "--output", Path, "folder to write", required=True)
    text = parser.add_argument_group("instead of --config")
    option(text, "--ids", Path, "token ids, one-dimensional", metavar="FILE.npy")
    option(text, "--end_of_text", whole(0), "token that ends a document")

    table = parser.add_argument_group("n-grams")
    option(table, "--n", listed(whole(2)), "length of the n-grams, 2 to 7", (5,))
    option(table, "--windows", listed(whole(1)), "number of n-grams to draw (default: all)")
    rows = parser.add_argument_group("rows of the matrix")
    option(rows, "--contexts", listed(whole(1)), "number of contexts to draw (default: all)")
    option(rows, "--min_count", whole(1), "drop contexts rarer than N", 1)
    weighting = "weight rows equally, or by the square root of the context's count"
    option(rows, "--weighting", str, weighting, "equal", choices=("equal", "frequency"))
    space = "entries: probabilities, their logarithms, or positive PMI"
    option(rows, "--space", str, space, "probability", choices=("probability", "log", "pmi"))
    smoothing = "pseudo-counts of a row, in total (default: 1 with --space=log, otherwise 0)"
    option(rows, "--smoothing", real(0), smoothing)
    switch(rows, "--split_half", "also estimate the W-error without sampling noise")
    cost = parser.add_argument_group("cost")
    dimensions = "dimensions up to which W-errors are exact to 1e-3"
    option(cost, "--dimensions", whole(0), dimensions, 4000)
    option(cost, "--memory", real(0), "memory to use", 4.0, metavar="GB")
    switch(cost, "--exact", "compute all eigenvalues, however long it takes")
    option(parser, "--seed", whole(0), "seed of the draws", 0)
    switch(parser, "--paper", "also draw the paper's curves")
    return parser


def _stored(path: Path) -> tuple[Tokens, str]:
    """The ids in a .npy file, memory-mapped, and their hash."""
    import numpy as np

    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
        # The header of a .npy file is Python's own text for a dict.
        reason = " ".join(str(error).split())
        raise UserError(f"--ids={path} is not a .npy file of token ids: {reason}") from error
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise UserError(f"--ids={path} must be a one-dimensional array of integers")
    digest = hashlib.sha256(str(tokens.dtype).encode())
    for start in range(0, len(tokens), _HASHED):
        digest.update(np.ascontiguousarray(tokens[start : start + _HASHED]).data)
    return tokens, digest.hexdigest()
