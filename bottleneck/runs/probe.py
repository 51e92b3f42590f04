"""The record of one probe: training, series and features write it, everything else reads it.

D: hidden width; n: ranks of the truncation sweep; g: documents. Losses and gaps are in nats per
token, over the same validation tokens each time.
"""

# The functions below are called to make fields.
# ruff: noqa: RUF009

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.errors import UserError
from bottleneck.storage.arrays import read_arrays, write_arrays


@dataclass(frozen=True, eq=False)
class RankGaps:
    """The cost of truncating a head to each rank by one kind of truncation: float64 [n].

    gap: loss of the truncated head, less the whole head's.
    gap_se: standard error of the gap, paired, clustered by document.
    first_order: E_p[Δ] − Δ[y], Δ being the change of the logits; zero at a minimum.
    second_order: ½·Var_p(Δ); first_order + second_order predicts the gap.
    kl: KL of the truncated head's distribution from the whole head's, nats.
    agreement: fraction of tokens whose most likely next token stays the same.
    rare, middle, frequent: parts of the gap, of the rarest third of the text, and so on.
    """

    gap: np.ndarray
    gap_se: np.ndarray
    first_order: np.ndarray
    second_order: np.ndarray
    kl: np.ndarray
    agreement: np.ndarray
    rare: np.ndarray
    middle: np.ndarray
    frequent: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """Returns the gap to second order in the change of the logits."""
        return self.first_order + self.second_order


_FLAT, _BY_RANK, _BY_LAYER = "", "ranks", "layers"  # how the metrics number a field


def _measured(scalars: str | None = None, **default: Any) -> Any:
    """A field of a probe, and how it goes into the metrics; None keeps it out of them."""
    return field(metadata={"scalars": scalars}, **default)


def _maybe(scalars: str | None = None) -> Any:
    """The same for a field that is None if it was not measured."""
    return _measured(scalars, default=None)


@dataclass(frozen=True, eq=False)
class Probe:
    """Everything that one probe measured; None where it was not measured.

    loss, loss_se: cross-entropy of the model and its standard error, clustered by document.
    document_losses, document_tokens: [g], sums of losses and counts of tokens in each document, so
        that runs can be compared pair by pair.
    ranks: int [n], ascending; the last is D.
    plain, whitened: what truncation to each rank costs, by the SVD of W and by that of the logits.
    singular_values, singular_values_centred: [D], descending, of W and of W − 1·w̄ᵀ.
    first_bounded_index: from here on a singular value is only an upper bound.
    whitened_singular_values: [D], of the centred W times C^½.
    singular_entropy, singular_entropy_linear, singular_entropy_centred: KL of the normalised
        spectrum from the uniform one, nats; p ∝ σ², p ∝ σ, and p ∝ σ² of the centred head.
    effective_rank: exp of the entropy of p ∝ σ (Roy and Vetterli 2007).
    stable_rank: Σσ² / σ₀².  participation_ratio: (Σσ²)² / Σσ⁴.
    tail_exponent: a of σᵢ ∝ i^−a over the middle of the spectrum.
    w_error: [n], share of the norm of W that its best rank-r copy loses.
    anisotropy, anisotropy_centred: [layers + 1], mean cosine similarity of hidden states, and of
        those less their mean; 0 is the embedding, the last is after the final norm.
    anisotropy_without_bias: of the last layer, less the final norm's bias.
    iso_score: about the share of dimensions used evenly (Rudman et al. 2022).
    hidden_top_share: share of E‖h‖² in the direction that has most of it.
    mean_hidden_norm: E‖h‖.
    gradient_survival: fraction of the norm of ∂loss/∂logits that the head passes back.
    """

    singular_values: np.ndarray = _measured()
    singular_values_centred: np.ndarray = _measured()
    first_bounded_index: int = _measured()
    singular_entropy: float = _measured(_FLAT)
    singular_entropy_linear: float = _measured(_FLAT)
    singular_entropy_centred: float = _measured(_FLAT)
    effective_rank: float = _measured(_FLAT)
    stable_rank: float = _measured(_FLAT)
    participation_ratio: float = _measured(_FLAT)
    tail_exponent: float = _measured(_FLAT)
    ranks: np.ndarray = _measured()
    w_error: np.ndarray = _measured(_BY_RANK)
    anisotropy: np.ndarray = _measured(_BY_LAYER)
    anisotropy_centred: np.ndarray = _measured(_BY_LAYER)
    anisotropy_without_bias: float = _maybe(_FLAT)
    iso_score: float = _maybe(_FLAT)
    hidden_top_share: float = _maybe(_FLAT)
    mean_hidden_norm: float = _maybe()
    whitened_singular_values: np.ndarray = _maybe()
    gradient_survival: float = _maybe(_FLAT)
    loss: float = _maybe()
    loss_se: float = _maybe()
    document_losses: np.ndarray = _maybe()
    document_tokens: np.ndarray = _maybe()
    plain: RankGaps = _maybe()
    whitened: RankGaps = _maybe()

    def scalars(self) -> dict[str, float]:
        """Returns the numbers that go into the metrics; `gap/plain/16` is that of rank 16."""
        found: dict[str, float] = {}
        for entry in dataclasses.fields(self):
            value, how = getattr(self, entry.name), entry.metadata["scalars"]
            if how is None or value is None:
                continue
            if how == _FLAT:
                found[entry.name] = float(value)
            else:
                keys = self.ranks if how == _BY_RANK else range(len(value))
                found |= _numbered(entry.name, keys, value)
        if self.plain is not None:
            found |= _numbered("gap/plain", self.ranks, self.plain.gap)
            found |= _numbered("gap/predicted", self.ranks, self.plain.predicted)
        if self.whitened is not None:
            found |= _numbered("gap/whitened", self.ranks, self.whitened.gap)
        return found

    def headline(self) -> str:
        """Returns the numbers that a person watching a run wants to see."""
        return (
            f"validation loss {self.loss:.4f} ± {self.loss_se:.4f}, "
            f"singular entropy {self.singular_entropy:.3f}, "
            f"effective rank {self.effective_rank:.1f}"
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns every number that was measured, by name; "plain/gap" is `plain.gap`."""
        found: dict[str, np.ndarray] = {}
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, RankGaps):
                found |= {f"{entry.name}/{k}": np.asarray(v) for k, v in vars(value).items()}
            elif value is not None:
                found[entry.name] = np.asarray(value)
        return found

    def save(self, path: Path) -> None:
        """Writes an .npz file that exists whole or not at all."""
        write_arrays(path, self.arrays())

    @classmethod
    def load(cls, path: Path) -> Probe:
        """Returns the probe in a file; `UserError` if it is missing, damaged or no probe."""
        arrays = read_arrays(path)
        values: dict[str, Any] = {}
        for entry in dataclasses.fields(cls):
            if entry.name in ("plain", "whitened"):
                parts = {
                    part.name: arrays[f"{entry.name}/{part.name}"]
                    for part in dataclasses.fields(RankGaps)
                    if f"{entry.name}/gap" in arrays
                }
                values[entry.name] = RankGaps(**parts) if parts else None
            elif entry.name in arrays:
                value = arrays[entry.name]
                values[entry.name] = value if value.ndim else value.item()
            elif entry.default is dataclasses.MISSING:
                raise UserError(f"{path} is no probe: it has no {entry.name}")
        return cls(**values)


def _numbered(name: str, keys: typing.Iterable[int], values: np.ndarray) -> dict[str, float]:
    return {f"{name}/{key}": float(value) for key, value in zip(keys, values, strict=True)}
