"""The record of a probe: training, series and features write it; figures, tables and laws read it.

D: hidden width; σ: singular values of the head W; n: ranks of the truncation sweep; g: documents.
Losses and gaps are in nats per token, over the same validation tokens each time.
"""

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

    gap: loss of the truncated head minus that of the whole head.
    gap_se: standard error of the gap; paired by token, clustered by document.
    first_order: E_p[Δ] − Δ[y], with Δ the change of the logits; zero at a minimum.
    second_order: ½·Var_p(Δ); first_order + second_order predicts the gap.
    kl: KL(p‖p_r), nats, p being the whole head's distribution and p_r the truncated head's.
    agreement: 0 to 1, fraction of tokens that keep their most likely next token.
    rare, middle, frequent: [n] each, parts of the gap by thirds of the text, rarest tokens first.
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


# Keys of a field in the metrics. Fields without them are not scalars and stay in the .npz file.
_FLAT, _BY_RANK, _BY_LAYER = ({"keys": keys} for keys in ("", "ranks", "layers"))
_UNMEASURED: Any = None


@dataclass(frozen=True, eq=False)
class Probe:
    """All results of one probe; None marks what was not measured.

    singular_values, singular_values_centred: [D], descending, of W and of W − 1·w̄ᵀ.
    first_bounded_index: singular values from this index on are only upper bounds.
    singular_entropy: KL(p‖u), nats, of p ∝ σ² from the uniform u; 0 for a flat spectrum.
    singular_entropy_linear, singular_entropy_centred: the same of p ∝ σ, and of the centred head.
    effective_rank, stable_rank, participation_ratio, tail_exponent: as in `probes`.
    ranks: int [n], ascending; the last is D.
    w_error: [n], √(Σ_{i>r} σᵢ² / Σσ²), the fraction of ‖W‖ that truncation to rank r removes.
    anisotropy: [layers + 1], mean cosine similarity of hidden states.
        Index 0 is the embedding; the last is after the final norm.
    anisotropy_centred: [layers + 1], the same without the mean hidden state.
    anisotropy_without_bias: of the last layer without the final norm's bias.
    iso_score: 0 to 1, roughly the fraction of dimensions used evenly (Rudman et al. 2022).
    hidden_top_share: 0 to 1, fraction of E‖h‖² along its largest direction.
    mean_hidden_norm: E‖h‖.
    whitened_singular_values: [D], of the centred W times C^½, C = E[h hᵀ].
    gradient_survival: 0 to 1, fraction of the norm of ∂loss/∂logits that the head passes back.
    loss, loss_se: cross-entropy of the model and its standard error, clustered by document.
    document_losses, document_tokens: [g], the sum of losses and number of tokens of each document.
    plain, whitened: cost of truncating W itself, and of truncating W·C^½.
    """

    singular_values: np.ndarray
    singular_values_centred: np.ndarray
    first_bounded_index: int
    singular_entropy: float = field(metadata=_FLAT)
    singular_entropy_linear: float = field(metadata=_FLAT)
    singular_entropy_centred: float = field(metadata=_FLAT)
    effective_rank: float = field(metadata=_FLAT)
    stable_rank: float = field(metadata=_FLAT)
    participation_ratio: float = field(metadata=_FLAT)
    tail_exponent: float = field(metadata=_FLAT)
    ranks: np.ndarray
    w_error: np.ndarray = field(metadata=_BY_RANK)
    anisotropy: np.ndarray = field(metadata=_BY_LAYER)
    anisotropy_centred: np.ndarray = field(metadata=_BY_LAYER)
    anisotropy_without_bias: float = field(default=_UNMEASURED, metadata=_FLAT)
    iso_score: float = field(default=_UNMEASURED, metadata=_FLAT)
    hidden_top_share: float = field(default=_UNMEASURED, metadata=_FLAT)
    mean_hidden_norm: float = _UNMEASURED
    whitened_singular_values: np.ndarray = _UNMEASURED
    gradient_survival: float = field(default=_UNMEASURED, metadata=_FLAT)
    loss: float = _UNMEASURED
    loss_se: float = _UNMEASURED
    document_losses: np.ndarray = _UNMEASURED
    document_tokens: np.ndarray = _UNMEASURED
    plain: RankGaps = _UNMEASURED
    whitened: RankGaps = _UNMEASURED

    def scalars(self) -> dict[str, float]:
        """Returns the numbers for the metrics by name; `gap/plain/16` is the gap at rank 16."""
        found: dict[str, float] = {}
        for entry in dataclasses.fields(self):
            value, keys = getattr(self, entry.name), entry.metadata.get("keys")
            if keys is None or value is None:
                continue
            if not keys:
                found[entry.name] = float(value)
            else:
                numbers = self.ranks if keys == "ranks" else range(len(value))
                found |= _numbered(entry.name, numbers, value)
        if self.plain is not None:
            found |= _numbered("gap/plain", self.ranks, self.plain.gap)
            found |= _numbered("gap/predicted", self.ranks, self.plain.predicted)
        if self.whitened is not None:
            found |= _numbered("gap/whitened", self.ranks, self.whitened.gap)
        return found

    def headline(self) -> str:
        """Returns the main numbers in one line, for a person watching the run."""
        return (
            f"validation loss {self.loss:.4f} ± {self.loss_se:.4f}, "
            f"singular entropy {self.singular_entropy:.3f}, "
            f"effective rank {self.effective_rank:.1f}"
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns every measured array by name; "plain/gap" is `plain.gap`."""
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
        """Returns the probe in a file; `UserError` if the file is missing, damaged or no probe."""
        arrays = read_arrays(path)
        values: dict[str, Any] = {}
        for entry in dataclasses.fields(cls):
            if f"{entry.name}/gap" in arrays:
                names = (part.name for part in dataclasses.fields(RankGaps))
                values[entry.name] = RankGaps(**{n: arrays[f"{entry.name}/{n}"] for n in names})
            elif entry.name in arrays:
                value = arrays[entry.name]
                values[entry.name] = value if value.ndim else value.item()
            elif entry.default is dataclasses.MISSING:
                raise UserError(f"{path} is no probe: it has no {entry.name}")
        return cls(**values)


def _numbered(name: str, keys: typing.Iterable[int], values: np.ndarray) -> dict[str, float]:
    return {f"{name}/{key}": float(value) for key, value in zip(keys, values, strict=True)}
