"""A language whose rank is known, to calibrate the measurement of ranks by.

Its tokens are a stationary Markov chain of order one: given a token s, the next one has the logits
Z[s], and Z = U Wᵀ is a [V, V] matrix of rank ρ. Token 0 is the end of text, a symbol of the chain
like any other, and a document is what lies between two of them: so a stream of documents, in any
order, is the chain itself, and its entropy rate is the least cross-entropy that a model can have.

V: tokens of the language; ρ: its rank; P: transition probabilities, [V, V]; π: how often each
token occurs, [V].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from bottleneck.data.documents import Document
from bottleneck.data.tokenizer import END_OF_TEXT

# Standard deviation of the logits. At 1.5 nats the last of six dimensions is worth 0.1 nats, the
# last of twelve 0.04: ten standard errors of a measured loss. At 2 nats and above the loss of heads
# of a lower rank has local minima, up to a tenth of a nat apart, where training can end.
LOGIT_STD = 1.5

VERSION = 1  # of what is drawn from a seed; after a change of it no corpus made before is found

_FIRST_SYMBOL = 0x4E00  # token i is this code point plus i, a letter in over 20,000 alike
MAX_TOKENS = 2**14

_BLOCK = 2**12  # documents drawn together; a block depends on the seed and its number alone


@dataclass(frozen=True)
class Language:
    """A Markov chain over tokens; `make_language` draws one of a chosen rank."""

    transitions: np.ndarray  # P: float64 [V, V], row s the distribution of what follows token s
    stationary: np.ndarray  # π: float64 [V], π P = π

    @property
    def entropy_rate(self) -> float:
        """−Σ π_s P_st ln P_st in nats per token: the floor of the cross-entropy of every model."""
        return self.cross_entropy(np.log(self.transitions))

    def cross_entropy(self, logits: np.ndarray) -> float:
        """Nats per token of a model that answers token s with the logits [s] of a [V, V] matrix."""
        top = logits.max(axis=1, keepdims=True)
        log_sum = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
        expected = np.einsum("st,st->s", self.transitions, logits)
        return float(self.stationary @ (log_sum - expected))


def make_language(n_tokens: int, rank: int, seed: int) -> Language:
    """A language of `n_tokens` tokens whose logits have exactly this rank.

    The softmax ignores what is added to all logits of a row, so it is the rows' deviations from
    their means that have the rank: ρ equal singular values, and none beside. Each dimension thus
    matters as much as any other. A head without bias, of rank R ≥ ρ, can represent the language,
    and one of rank R < ρ cannot, whatever its hidden states are.

    Args:
        n_tokens: V, at least rank + 1, the end of text among them.
        seed: of the directions; the same in any process and on any machine, up to rounding.
    """
    assert 1 <= rank < n_tokens <= MAX_TOKENS, (rank, n_tokens)
    rng = np.random.default_rng(seed)
    contexts_Vxr = _orthonormal(rng.standard_normal((n_tokens, rank)))
    tokens_Vxr = rng.standard_normal((n_tokens, rank))
    tokens_Vxr = _orthonormal(tokens_Vxr - tokens_Vxr.mean(axis=0))
    # ρ singular values of V/√ρ: the entries have a mean square of 1.
    logits = LOGIT_STD * n_tokens / rank**0.5 * contexts_Vxr @ tokens_Vxr.T
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    transitions = weights / weights.sum(axis=1, keepdims=True)
    return Language(transitions, _stationary(transitions))


def documents(language: Language, n_documents: int, seed: int) -> Iterator[Document]:
    """Independent documents, the same each time; the symbols of one are a text of as many letters.

    Each text begins with the document's number, which has no token. So an end of text that follows
    another is a document too, no two are alike, and which are held out has nothing to do with their
    symbols: both splits are the chain itself.
    """
    bytes_each = nominal_bytes(len(language.transitions), 1)
    for block in range(-(-n_documents // _BLOCK)):
        start = block * _BLOCK
        rng = np.random.default_rng([seed, block])
        drawn = _draw(language.transitions, min(_BLOCK, n_documents - start), rng)
        for number, symbols in enumerate(drawn, start):
            yield Document(str(number), f"{number} {symbols}", (number + 1) * bytes_each)


def nominal_bytes(n_tokens: int, n_documents: int) -> int:
    """About how many bytes the documents have: V letters each, as if all tokens were alike."""
    return n_documents * n_tokens * len(chr(_FIRST_SYMBOL).encode())


def tokenizer(n_tokens: int) -> Tokenizer:
    """The tokenizer whose token i is the i-th letter, and 0 the end of text."""
    vocabulary = {END_OF_TEXT: 0} | {chr(_FIRST_SYMBOL + i): i for i in range(1, n_tokens)}
    result = Tokenizer(models.WordLevel(vocabulary, unk_token=END_OF_TEXT))
    result.add_special_tokens([END_OF_TEXT])
    result.normalizer = normalizers.Replace(Regex("^[0-9]+ "), "")
    result.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    result.decoder = decoders.Fuse()
    return result


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the columns, the one whose triangular factor is positive."""
    basis, triangle = np.linalg.qr(columns)
    return basis * np.sign(np.diag(triangle))


def _stationary(transitions: np.ndarray) -> np.ndarray:
    """π with π P = π and Σ π = 1; every entry of P is positive, so there is one."""
    n = len(transitions)
    equations = np.concatenate([transitions.T - np.eye(n), np.ones((1, n))])
    return np.linalg.lstsq(equations, np.eye(n + 1)[-1], rcond=None)[0]


def _draw(transitions: np.ndarray, n: int, rng: np.random.Generator) -> list[str]:
    """n documents as letters: chains that start from the end of text, all stepped at once."""
    n_tokens = len(transitions)
    # Row s of the cumulative probabilities, plus s: one ascending list to look all states up in.
    cumulative = (np.cumsum(transitions, axis=1) + np.arange(n_tokens)[:, None]).ravel()
    states = np.zeros(n, np.int64)
    running = np.arange(n)
    owners, symbols = [], []
    while len(running):
        found = np.searchsorted(cumulative, states + rng.random(len(states)), side="right")
        # Rounding of the sum can step just past the end of a row.
        states = np.minimum(found - n_tokens * states, n_tokens - 1)
        running, states = running[states > 0], states[states > 0]
        owners.append(running)
        symbols.append(states)
    owner, symbol = np.concatenate(owners), np.concatenate(symbols)
    in_order = symbol[np.argsort(owner, kind="stable")]
    letters = (_FIRST_SYMBOL + in_order).astype("<u4").tobytes().decode("utf-32-le")
    ends = np.cumsum(np.bincount(owner, minlength=n)).tolist()
    return [letters[start:end] for start, end in zip([0, *ends], ends, strict=False)]
