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
from bottleneck.commands.parsing import Parser, listed, real, whole
from bottleneck.errors import UserError

if TYPE_CHECKING:
    from bottleneck.ngrams.windows import Tokens

_LIBRARIES = 0.5  # GB of memory that the program takes before it has an array
_HASHED = 2**24  # tokens at a time


def main(argv: list[str]) -> int:
    """Returns the exit code; raises `UserError` if the text or a flag is wrong."""
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

    # Imported here because they take seconds: --help need not wait for them.
    from bottleneck.ngrams import study as ngram_study
    from bottleneck.ngrams.rows import Estimate
    from bottleneck.ngrams.windows import Windows, largest_id
    from bottleneck.paper.curves import w_errors

    smoothing = flags.smoothing
    if smoothing is None:
        smoothing = 1.0 if flags.space == "log" else 0.0
    estimates = [
        Estimate(
            flags.space, flags.weighting, smoothing, flags.min_count, contexts, seed=flags.seed
        )
        for contexts in flags.contexts or [None]
    ]
    tokens: Tokens
    if config is None:
        tokens, identity = _stored(flags.ids)
        vocab_size, end_of_text = largest_id(tokens) + 1, flags.end_of_text
    else:
        from bottleneck.data.tokens import prepare

        cache = prepare(config.data)
        tokens, identity = cache.tokens("train"), cache.digest
        vocab_size, end_of_text = cache.vocab_size, cache.end_of_text
    samples = flags.windows or [None]
    windows = [
        Windows(n, vocab_size, end_of_text, sample, flags.seed)
        for n, sample in itertools.product(flags.n, samples)
    ]
    study = ngram_study.Study(
        windows,
        estimates,
        flags.dimensions,
        (flags.memory - _LIBRARIES) * 1e9,
        flags.exact,
        flags.split_half,
    )
    published = w_errors() if flags.paper else None
    spectra = ngram_study.carry_out(study, tokens, identity, flags.output)
    print(ngram_study.summary(spectra))
    print(f"\nfigure: {ngram_study.draw(spectra, flags.output, published)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser("python -m bottleneck ngrams", description=__doc__, allow_abbrev=False)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write")
    text = parser.add_argument_group("instead of --config")
    text.add_argument("--ids", type=Path, metavar="FILE.npy", help="token ids, one-dimensional")
    text.add_argument(
        "--end_of_text", type=whole(0), metavar="N", help="token that ends a document"
    )

    table = parser.add_argument_group("n-grams")
    table.add_argument(
        "--n",
        type=listed(whole(2)),
        default=(5,),
        metavar="N,…",
        help="length of the n-grams, 2 to 7 (default: 5)",
    )
    table.add_argument(
        "--windows", type=listed(whole(1)), metavar="N,…", help="draw N n-grams (default: all)"
    )
    rows = parser.add_argument_group("rows of the matrix")
    rows.add_argument(
        "--contexts", type=listed(whole(1)), metavar="N,…", help="draw N contexts (default: all)"
    )
    rows.add_argument(
        "--min_count",
        type=whole(1),
        metavar="N",
        default=1,
        help="drop contexts rarer than N (default: 1)",
    )
    rows.add_argument(
        "--weighting",
        choices=("equal", "frequency"),
        default="equal",
        help="weight rows equally, or by the square root of the context's count (default: equal)",
    )
    rows.add_argument(
        "--space",
        choices=("probability", "log", "pmi"),
        default="probability",
        help="entries: probabilities, their logarithms, or positive PMI (default: probability)",
    )
    rows.add_argument(
        "--smoothing",
        type=real(0),
        metavar="X",
        help="pseudo-counts of a row, in total (default: 1 with --space=log, otherwise 0)",
    )
    rows.add_argument(
        "--split_half", action="store_true", help="also estimate the W-error without sampling noise"
    )
    cost = parser.add_argument_group("cost")
    cost.add_argument(
        "--dimensions",
        type=whole(0),
        metavar="N",
        default=4000,
        help="dimensions up to which W-errors are exact to 1e-3 (default: 4000)",
    )
    cost.add_argument(
        "--memory", type=real(0), default=4.0, metavar="GB", help="memory to use (default: 4)"
    )
    cost.add_argument(
        "--exact", action="store_true", help="compute all eigenvalues, however long it takes"
    )
    parser.add_argument(
        "--seed", type=whole(0), metavar="N", default=0, help="seed of the draws (default: 0)"
    )
    parser.add_argument("--paper", action="store_true", help="also draw the paper's curves")
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
