"""A writer of run folders with made-up but realistic numbers, to read back and to draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.config import base, parse, to_dict
from bottleneck.runs.probe import Probe, RankGaps

VERSIONS = {"jax": "0.10.2", "flax": "0.12.8", "optax": "0.2.6", "orbax-checkpoint": "0.12.8"}


def write_run(
    folder: Path,
    *,
    d_model: int = 64,
    head_rank: int | None = None,
    steps: int = 400,
    stop: int | None = None,
    probe_every: int = 50,
    seed: int = 0,
    learning_rate: float = 1e-3,
    n_layers: int = 4,
    language_rank: int | None = None,
) -> Path:
    """Writes the folder of a run that ended at step `stop`, or was finished if that is None.

    With a language_rank it is a run on a language of that rank and 24 tokens.
    """
    rng = np.random.default_rng([seed, head_rank or d_model, d_model])
    fields = base()
    fields.seed = seed
    fields.model.update(d_model=d_model, head_rank=head_rank, n_layers=n_layers)
    fields.optimizer.learning_rate = learning_rate
    fields.train.update(steps=steps, batch_size=32, sequence_length=256)
    fields.probe.every = probe_every
    if language_rank is not None:
        language = {"corpus": "known_rank", "language_rank": language_rank, "language_tokens": 24}
        fields.data.update(language)
    config = parse(fields)
    rank = head_rank or d_model
    head = 8192 * d_model if head_rank is None else rank * (8192 + d_model)
    inner = n_layers * 12 * d_model**2
    record = {
        "config": to_dict(config),
        "versions": VERSIONS,
        "mesh": {"replica": 1, "fsdp": 1, "tensor": 1},
        "git_revision": "0123456789abcdef0123456789abcdef01234567",
        "parameters": {"total": 8192 * d_model + inner + head, "non_embedding": inner + head},
        "corpus": {
            "digest": "0" * 64,
            "train_tokens": 4_812_340,
            "validation_tokens": 98_765,
            "unigram_entropy": 6.8412,
            "bytes_per_token": 3.41,
        },
    }
    (folder / "probes").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(record))

    last = steps if stop is None else stop
    final_loss = 3.9 + 1.3 * rank**-0.6 + 6 / d_model
    lines: list[dict[str, Any]] = []
    for step in range(0, last + 1, 10):
        tokens = step * config.tokens_per_step
        true_loss = final_loss + (np.log(8192) - final_loss) * np.exp(-((step / 60) ** 0.7))
        if step:
            speed = 5200 if step == 10 else 31_000 * (1 + 0.05 * rng.standard_normal())
            lines.append(
                {"step": step, "split": "train", "tokens": tokens}
                | {"loss": true_loss + 0.06 * rng.standard_normal(), "grad_norm": 0.7}
                | {"learning_rate": learning_rate, "tokens_per_second": speed, "mfu": 0.31}
            )
        if step % probe_every == 0 or step == last:
            validation = true_loss + 0.05 + 0.004 * rng.standard_normal()
            eval_line = {"loss": validation, "loss_se": 0.021}
            lines.append({"step": step, "split": "eval", "tokens": tokens} | eval_line)
            measured = _write_probe(folder, step, d_model, rank, n_layers, validation, rng)
            lines.append({"step": step, "split": "probe", "tokens": tokens} | measured)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if stop is None:
        (folder / "COMPLETE").touch()
    return folder


def _write_probe(
    folder: Path, step: int, d_model: int, rank: int, n_layers: int, loss: float, rng: Any
) -> dict[str, float]:
    """Writes the arrays of a probe and returns its scalars; the spectrum steepens with the step."""
    index = np.arange(rank)
    singular_values = np.zeros(d_model)
    singular_values[:rank] = 30 * (1 + index) ** (-0.1 - 0.9 * (1 - np.exp(-step / 150)))
    singular_values[:rank] += 4 * (1 - index / rank)
    singular_values[0] *= 1 + step / 200
    centred = singular_values.copy()
    centred[0] = 1.1 * centred[1] if rank > 1 else centred[0]
    ranks = np.array([2**i for i in range(d_model.bit_length()) if 2**i < d_model] + [d_model])
    power = np.cumsum(singular_values**2)
    w_error = np.sqrt(np.maximum(1 - power[ranks - 1] / power[-1], 0))
    scale = 0.02 + step / 300
    gap = 2.2 * scale * w_error**2
    depths = np.linspace(0, 1, n_layers + 1)
    anisotropy = (
        0.05
        + 0.5 * depths * (1 - depths)
        + 0.25 * (1 - np.exp(-step / 200)) * np.linspace(0.2, 1, n_layers + 1) * (8 / rank) ** 0.2
    )

    def gaps(size: np.ndarray, error: np.ndarray) -> RankGaps:
        noise = 0.002 * w_error * rng.standard_normal(len(ranks))
        return RankGaps(
            gap=size + noise,
            gap_se=error,
            first_order=0.3 * gap,
            second_order=0.8 * gap,
            kl=0.9 * gap,
            agreement=1 - 0.8 * w_error,
            rare=0.5 * gap,
            middle=0.3 * gap,
            frequent=0.2 * gap,
        )

    probe = Probe(
        singular_values=singular_values,
        singular_values_centred=centred,
        first_bounded_index=d_model,
        singular_entropy=_entropy(singular_values),
        singular_entropy_linear=float(np.log(d_model)) + _plogp(singular_values),
        singular_entropy_centred=_entropy(centred),
        effective_rank=float(np.exp(-_plogp(singular_values))),
        stable_rank=float(power[-1] / singular_values[0] ** 2),
        participation_ratio=float(power[-1] ** 2 / np.sum(singular_values**4)),
        tail_exponent=0.5,
        ranks=ranks,
        w_error=w_error,
        anisotropy=anisotropy,
        anisotropy_centred=0.1 * anisotropy,
        mean_hidden_norm=d_model**0.5,
        whitened_singular_values=0.8 * centred,
        gradient_survival=0.4,
        loss=loss,
        loss_se=0.021,
        plain=gaps(gap, 0.03 * gap + 0.004 * w_error),
        whitened=gaps(0.4 * gap * w_error, 0.02 * gap + 0.004 * w_error),
    )
    probe.save(folder / "probes" / f"{step:08d}.npz")
    return probe.scalars()


def probe_of(**fields: Any) -> Probe:
    """A probe of a head of width 2 with made-up numbers, and these in place of some."""
    values = np.array([2.0, 1.0])
    numbers = {
        "singular_values": values,
        "singular_values_centred": values,
        "first_bounded_index": 2,
        "singular_entropy": 1.0,
        "singular_entropy_linear": 1.0,
        "singular_entropy_centred": 1.0,
        "effective_rank": 1.0,
        "stable_rank": 1.25,
        "participation_ratio": 1.5,
        "tail_exponent": 1.0,
        "ranks": np.array([1, 2]),
        "w_error": np.array([0.5, 0.0]),
        "anisotropy": np.array([0.1, 0.2]),
        "anisotropy_centred": np.array([0.0, 0.1]),
        "loss": 1.0,
        "loss_se": 0.1,
    }
    return Probe(**numbers | fields)


def _plogp(values: np.ndarray) -> float:
    p = values[values > 0] / values.sum()
    return float(np.sum(p * np.log(p)))


def _entropy(singular_values: np.ndarray) -> float:
    return float(np.log(len(singular_values)) + _plogp(singular_values**2))


def write_frozen_heads(folder: Path) -> None:
    """The results of a study of frozen heads, with made-up numbers."""
    ranks, cells = (1, 4, 16, 64), list[dict[str, Any]]()
    for start in ("whitened", "normal"):
        for rank in ranks:
            loss = 3.9 + 1.3 * rank**-0.6
            cell = {"start": start, "rank": rank, "loss": loss, "loss_se": 0.02, "accuracy": 0.3}
            cell |= {"accuracy_se": 0.01, "w_error": 1 - rank / 64}
            cells.append(cell | {"start_loss": loss + 0.3 if start == "whitened" else None})
    record = {"model": "full, step 400", "d_model": 64, "optimum_stopped": 4.0, "cells": cells}
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(record))
    names = [f"{cell['start']}/{cell['rank']}" for cell in cells]
    losses = np.array([cell["loss"] for cell in cells]) + np.linspace(-1, 1, 50)[:, None]
    np.savez(folder / "documents.npz", names=names, losses=losses, tokens=np.ones(50))
