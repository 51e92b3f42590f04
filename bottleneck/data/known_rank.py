"""A language of known rank, to calibrate measurements of rank.

Its tokens are a stationary first-order Markov chain. The token after s has the logits Z[s], and
Z = U Wᵀ is a [V, V] matrix of rank ρ. Token 0, the end of text, is a symbol of the chain like any
other. A document lies between two of them, so documents in any order are the chain itself.

V: tokens of the language; ρ: its rank; P: transitions, [V, V]; π: token frequencies, [V].
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from bottleneck.data.documents import Document
from bottleneck.data.tokenizer import END_OF_TEXT

# Standard deviation of the logits. At 1.5 nats the last of six dimensions is worth 0.1 nats, the
# last of twelve 0.04: ten standard errors of a measured loss. From 2 nats on, heads of lower rank
# have local minima up to a tenth of a nat apart, and training can end in one.
LOGIT_STD = 1.5

VERSION = 1  # of the draws from a seed; a new number makes every old cache unused

_FIRST_SYMBOL = 0x4E00  # token i is this code point plus i, one of over 20,000 letters in a row

_BLOCK = 2**12  # documents drawn together; a block is a function of the seed and its number


@dataclass(frozen=True)
class Language:
    """A Markov chain over tokens; `make_language` draws one of a chosen rank."""

    transitions: np.ndarray  # P: float64 [V, V], row s the distribution of the token after s
    stationary: np.ndarray  # π: float64 [V], π P = π

    @property
    def entropy_rate(self) -> float:
        """−Σ π_s P_st ln P_st in nats per token, the minimum cross-entropy of any model."""
        return self.cross_entropy(np.log(self.transitions))

    def cross_entropy(self, logits: np.ndarray) -> float:
        """Nats per token of a model with the logits [V, V], row s for the token after s."""
        top = logits.max(axis=1, keepdims=True)
        log_sum = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
        expected = np.einsum("st,st->s", self.transitions, logits)
        return float(self.stationary @ (log_sum - expected))


def make_language(n_tokens: int, rank: int, seed: int) -> Language:
    """Draws a language of `n_tokens` tokens whose logits have exactly this rank.

    The softmax ignores a constant added to a row, so the rank is that of the rows' deviations from
    their means. These have ρ equal singular values, so each dimension matters equally. A head
    without bias can represent the language if its rank R ≥ ρ, and otherwise cannot, for any hidden
    states. The directions of a seed are the same on any machine up to rounding.
    """
    assert 1 <= rank < n_tokens, (rank, n_tokens)
    rng = np.random.default_rng(seed)
    contexts_Vxr = _orthonormal(rng.standard_normal((n_tokens, rank)))
    tokens_Vxr = rng.standard_normal((n_tokens, rank))
    tokens_Vxr = _orthonormal(tokens_Vxr - tokens_Vxr.mean(axis=0))
    # ρ singular values of V/√ρ: the entries have a mean square of 1.
    logits = LOGIT_STD * n_tokens / rank**0.5 * contexts_Vxr @ tokens_Vxr.T
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    transitions = weights / weights.sum(axis=1, keepdims=True)
    # π P = π, Σ π = 1 has one solution, because every entry of P is positive.
    equations = np.concatenate([transitions.T - np.eye(n_tokens), np.ones((1, n_tokens))])
    stationary = np.linalg.lstsq(equations, np.eye(n_tokens + 1)[-1], rcond=None)[0]
    return Language(transitions, stationary)


def documents(language: Language, n_documents: int, seed: int) -> Iterator[Document]:
    """Yields independent documents, the same each time, one letter per symbol.

    Each text begins with the document's number, which has no token. So an empty document counts, no
    two are equal, and the split is independent of the symbols: both splits are the chain itself.
    """
    bytes_each = nominal_bytes(len(language.transitions), 1)
    for block in range(-(-n_documents // _BLOCK)):
        start = block * _BLOCK
        rng = np.random.default_rng([seed, block])
        drawn = _draw(language.transitions, min(_BLOCK, n_documents - start), rng)
        for number, symbols in enumerate(drawn, start):
            yield Document(str(number), f"{number} {symbols}", (number + 1) * bytes_each)


def nominal_bytes(n_tokens: int, n_documents: int) -> int:
    """Approximate bytes of the documents: V letters each, as if all tokens were equally likely."""
    return n_documents * n_tokens * len(chr(_FIRST_SYMBOL).encode())


def tokenizer(n_tokens: int) -> Tokenizer:
    """Returns the tokenizer whose token i is the i-th letter, and 0 the end of text."""
    vocabulary = {END_OF_TEXT: 0} | {chr(_FIRST_SYMBOL + i): i for i in range(1, n_tokens)}
    result = Tokenizer(models.WordLevel(vocabulary, unk_token=END_OF_TEXT))
    result.add_special_tokens([END_OF_TEXT])
    result.normalizer = normalizers.Replace(Regex("^[0-9]+ "), "")
    result.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    result.decoder = decoders.Fuse()
    return result


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    """Orthonormal basis of the columns, the one whose triangular factor is positive."""
    basis, triangle = np.linalg.qr(columns)
    return basis * np.sign(np.diag(triangle))


def _draw(transitions: np.ndarray, n: int, rng: np.random.Generator) -> list[str]:
    """Draws n documents as letters: chains that start at the end of text, stepped together."""
    n_tokens = len(transitions)
    # Row s of the cumulative probabilities plus s: one ascending list serves all states.
    cumulative = (np.cumsum(transitions, axis=1) + np.arange(n_tokens)[:, None]).ravel()
    states = np.zeros(n, np.int64)
    running = np.arange(n)
    owners, symbols = [], []
    while len(running):
        found = np.searchsorted(cumulative, states + rng.random(len(states)), side="right")
        # Rounding of the sum can step past the end of a row.
        states = np.minimum(found - n_tokens * states, n_tokens - 1)
        running, states = running[states > 0], states[states > 0]
        owners.append(running)
        symbols.append(states)
    owner, symbol = np.concatenate(owners), np.concatenate(symbols)
    in_order = symbol[np.argsort(owner, kind="stable")]
    letters = (_FIRST_SYMBOL + in_order).astype("<u4").tobytes().decode("utf-32-le")
    ends = np.cumsum(np.bincount(owner, minlength=n)).tolist()
    return [letters[start:end] for start, end in zip([0, *ends], ends, strict=False)]
