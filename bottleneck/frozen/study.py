"""A study of the cost of a rank: heads of many ranks trained on frozen features.

It repeats figure 6 of Godey et al. 2024. Heads may also start from the model's own head, truncated,
and a convex problem gives the best full-rank head. Each stage is saved to disk once it is complete:
1. Short trainings choose the learning rate of every head.
2. L-BFGS finds the convex optimum.
3. All heads train together.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bottleneck.config import CheckpointConfig
from bottleneck.errors import UserError
from bottleneck.frozen.features import Features, FeatureSet
from bottleneck.frozen.heads import (
    STARTS,
    BatchOrder,
    Best,
    Heads,
    Start,
    State,
    Training,
    cut_head,
    schedule,
    starting_heads,
)
from bottleneck.frozen.optimum import MOST_ITERATIONS, convex_optimum
from bottleneck.frozen.results import DOCUMENTS, RESULTS, load_results
from bottleneck.model.head import HeadFactors
from bottleneck.probes import spectral_metrics, spectrum, truncation
from bottleneck.probes.document_sums import DocumentSums
from bottleneck.runs.checkpoints import Checkpointer
from bottleneck.storage import json_files
from bottleneck.storage.arrays import read_arrays, write_arrays
from bottleneck.storage.workspace import Workspace
from bottleneck.terminal import Progress, console

_SEARCH, _OPTIMUM = "search.json", "optimum.npz"
_REMEDY = "delete it, and the same command makes it again"

_STEPS_TOGETHER = 10  # in one call of the compiled program
_EVALUATIONS = 20  # per training, about
_VALIDATION_TOKENS = 2**17  # at most; they stay on the device
_BLOCK = 2**16  # tokens in memory at a time


@dataclass(frozen=True)
class FrozenPlan:
    """The settings of a study. They and the features determine its results."""

    features: str  # model and digest of the corpus
    ranks: tuple[int, ...]  # ascending, up to D
    starts: tuple[Start, ...]
    learning_rates: tuple[float, ...]
    steps: int
    search_steps: int
    batch_tokens: int
    logit_sd: float  # nats; of a prior on logits, which keeps those of rare tokens finite
    loss_chunk: int
    seed: int

    def check(self, width: int) -> None:
        """Raises `UserError` about the first wrong value."""
        for name, is_right, allowed in (
            ("ranks", all(1 <= r <= width for r in self.ranks), f"between 1 and {width}"),
            ("starts", set(self.starts) <= set(STARTS), f"among {', '.join(STARTS)}"),
            ("learning_rates", all(rate > 0 for rate in self.learning_rates), "above 0"),
            ("starts", len(set(self.starts)) == len(self.starts), "each named once"),
            ("steps", self.steps >= _STEPS_TOGETHER, f"at least {_STEPS_TOGETHER}"),
            ("search_steps", self.search_steps >= 1, "at least 1"),
            ("batch_tokens", self.batch_tokens >= 1, "at least 1"),
            ("loss_chunk", self.loss_chunk >= 1, "at least 1"),
            ("seed", self.seed >= 0, "at least 0"),
            ("logit_sd", self.logit_sd > 0, "above 0"),
        ):
            if not is_right:
                raise UserError(
                    f"--{name}={getattr(self, name)} is not allowed; it must be {allowed}"
                )


@dataclass(frozen=True)
class _Group:
    """The heads of one start and rank."""

    start: Start
    rank: int

    @property
    def name(self) -> str:
        return f"{self.start}/{self.rank}"


class FrozenStudy:
    """A study of one feature set, kept in a folder."""

    def __init__(self, features: FeatureSet, plan: FrozenPlan, folder: Path):
        """Raises `UserError` if the plan is wrong, or the folder holds another study."""
        features.require_linear_head()
        plan.check(features.manifest.d_model)
        self.features, self.plan, self.folder = features, plan, folder
        remedy = f"delete it if it is {RESULTS}, else the folder; the same command makes it again"
        self._workspace = Workspace(
            folder, dataclasses.asdict(plan), "a study", done=RESULTS, remedy=remedy
        )
        self._workspace.check()
        self._train = features.part("train")
        self._validation = _first(features.part("validation"), _VALIDATION_TOKENS)
        self._validation_hidden = jnp.asarray(self._validation.hidden, jnp.float32)
        self._validation_targets = jnp.asarray(self._validation.targets)
        moment = _second_moment(self._train.hidden)
        self._training = Training(
            plan.loss_chunk,
            jnp.float32(moment),
            1 / (len(self._train.targets) * plan.logit_sd**2),
        )
        core = spectrum.read_core(features.head)
        self._cuts = {
            "plain": truncation.plain(core.raw),
            "whitened": truncation.whitened(core.raw, moment),
        }
        self._spectrum = core.resolved(self._cuts["plain"].singular_values).values
        self._groups = [_Group(start, rank) for start in plan.starts for rank in plan.ranks]
        self._order = BatchOrder(len(self._train.targets), plan.batch_tokens, plan.seed)

    def run(self) -> dict[str, Any]:
        """Returns the contents of results.json; skips the stages that are complete."""
        with self._workspace.opened() as results:
            if results:
                console.print(f"{self.folder} holds this study, complete; nothing to do")
                return load_results(self.folder)
            rates = self._search()
            optimum = self._optimum()
            results.update(self._results(rates, optimum, self._train_all(rates)))
        return results

    def _search(self) -> dict[str, float]:
        """Returns group → the learning rate of lowest validation loss after a short training."""
        path = self.folder / _SEARCH
        if path.exists():
            found: dict[str, float] = json_files.read(path, _REMEDY).get("best", {})
            if not all(isinstance(found.get(group.name), float) for group in self._groups):
                raise UserError(f"{path} lacks the rates of some heads; {_REMEDY}")
            return found
        grid = np.array(self.plan.learning_rates)
        states = self._states(len(grid))
        rates = [np.broadcast_to(grid, (len(grid),)) for _ in self._groups]
        states = self._trained(
            states, rates, self.plan.search_steps, "steps with each learning rate", None
        )
        tried = {
            group.name: np.asarray(state.progress.best_loss).tolist()
            for group, state in zip(self._groups, states, strict=True)
        }
        best = {name: float(grid[int(np.argmin(losses))]) for name, losses in tried.items()}
        record = {"learning_rates": grid.tolist(), "losses": tried, "best": best}
        json_files.write(path, record)
        return best

    def _optimum(self) -> dict[str, np.ndarray]:
        """Returns the convex optimum, and the iterate of lowest validation loss."""
        path = self.folder / _OPTIMUM
        if not path.exists():
            best: dict[str, Any] = {"loss": np.inf}
            rows = np.asarray(self.features.head.matrix())
            iterations = itertools.count()

            def watch(rows: np.ndarray) -> None:
                loss = float(self._scores(HeadFactors(jnp.asarray(rows)))[0].mean())
                if loss < best["loss"]:
                    best.update(loss=loss, rows=np.float32(rows))
                progress.show(next(iterations))

            with Progress("iterations to the convex optimum, at most", MOST_ITERATIONS) as progress:
                watch(rows)
                data = (self._train.hidden, self._train.targets)
                found = convex_optimum(self._training, *data, rows, watch=watch)
            write_arrays(path, dataclasses.asdict(found) | {"best_rows": best["rows"]})
        return read_arrays(path, _REMEDY)

    def _train_all(self, rates: dict[str, float]) -> list[State]:
        states = self._states(1)
        by_group = [np.array([rates[group.name]]) for group in self._groups]
        with Checkpointer(self.folder / "state", CheckpointConfig(keep_last=1)) as saved:
            return self._trained(states, by_group, self.plan.steps, "steps of all heads", saved)

    def _states(self, n_rates: int) -> list[State]:
        heads = [
            starting_heads(
                group.start,
                group.rank,
                self.features.head,
                self._cuts.get(group.start),
                n_rates,
                jax.random.fold_in(jax.random.key(self.plan.seed), i),
            )
            for i, group in enumerate(self._groups)
        ]
        return [self._training.start(head) for head in heads]

    def _trained(
        self,
        states: list[State],
        rates: list[np.ndarray],
        steps: int,
        what: str,
        saved: Checkpointer | None,
    ) -> list[State]:
        """Returns the states after n steps; `saved` keeps them at each evaluation."""
        latest = None if saved is None else saved.latest_step()
        if saved is not None and latest is not None:
            abstract = jax.eval_shape(lambda: _apart(states))
            states = [State(*parts) for parts in zip(*saved.restore(latest, abstract), strict=True)]
            start = latest
        else:
            states, start = self._evaluated(states, 0), 0
        shape = schedule(steps)
        every = -(-steps // (_EVALUATIONS * _STEPS_TOGETHER)) * _STEPS_TOGETHER
        with Progress(what, steps) as progress:
            for begin in range(start, steps, _STEPS_TOGETHER):
                taken = range(begin, min(begin + _STEPS_TOGETHER, steps))
                tokens = np.stack([self._order.rows(step) for step in taken])
                states = self._training.steps(
                    states,
                    [jnp.float32(shape[taken.start : taken.stop, None] * rate) for rate in rates],
                    jnp.asarray(self._train.hidden[tokens], jnp.float32),
                    jnp.asarray(self._train.targets[tokens]),
                )
                progress.show(taken.stop)
                if taken.stop % every == 0 or taken.stop == steps:
                    states = self._evaluated(states, taken.stop)
                    if saved is not None:
                        saved.save(taken.stop, *_apart(states))
        return states

    def _evaluated(self, states: list[State], step: int) -> list[State]:
        return [
            self._training.keep_best(
                state, jnp.mean(self._evaluate(state.heads)[0], axis=1), jnp.int32(step)
            )
            for state in states
        ]

    def _evaluate(self, heads: Heads) -> tuple[jax.Array, jax.Array]:
        return self._training.evaluate(heads, self._validation_hidden, self._validation_targets)

    def _scores(self, head: HeadFactors) -> tuple[np.ndarray, np.ndarray]:
        """Returns one head's `Training.evaluate` on the validation tokens: two float64 [N]."""
        basis = jnp.eye(self.features.manifest.d_model) if head.basis is None else head.basis
        found = self._evaluate(Heads(jnp.float32(head.rows)[None], jnp.float32(basis)[None]))
        loss, is_right = (np.asarray(array[0], np.float64) for array in found)
        return loss, is_right

    def _results(
        self, rates: dict[str, float], optimum: dict[str, np.ndarray], states: list[State]
    ) -> dict[str, Any]:
        own = self.features.head
        w_error = spectral_metrics.w_error(self._spectrum)
        names = ["own", "optimum", "optimum_stopped"]
        scores = [
            self._scores(own),
            self._scores(HeadFactors(jnp.asarray(optimum["rows"]))),
            self._scores(HeadFactors(jnp.asarray(optimum["best_rows"]))),
        ]
        cells = []
        for group, state in zip(self._groups, states, strict=True):
            cut = self._cuts.get(group.start)
            start = None if cut is None else self._scores(cut_head(own, cut, group.rank))[0]
            cells.append(
                {
                    "start": group.start,
                    "rank": group.rank,
                    "learning_rate": rates[group.name],
                    "best_step": int(state.progress.best_step[0]),
                    "start_loss": None if start is None else float(start.mean()),
                    "converged_loss": float(self._scores(state.heads.one(0))[0].mean()),
                    "w_error": float(w_error[group.rank - 1]),
                }
            )
            names.append(group.name)
            scores.append(self._scores(state.progress.best.one(0)))
        losses, rights = (np.stack(column, axis=1) for column in zip(*scores, strict=True))
        documents = self._validation.documents
        of_loss, of_right = DocumentSums.of(losses, documents), DocumentSums.of(rights, documents)
        # Gaps to the best full-rank head are paired by token.
        gaps = DocumentSums.of(losses - losses[:, [2]], documents)
        for i, cell in enumerate(cells, start=3):
            for name, sums in (("loss", of_loss), ("accuracy", of_right), ("gap", gaps)):
                cell[name] = float(sums.means()[i])
                cell[f"{name}_se"] = float(sums.standard_errors()[i])
        record = {
            "model": self.features.manifest.model,
            "d_model": self.features.manifest.d_model,
            "train_tokens": len(self._train.targets),
            "validation_tokens": len(self._validation.targets),
            **{name: float(of_loss.means()[i]) for i, name in enumerate(names[:3])},
            "optimum_objective": float(optimum["objective"]),
            "optimum_iterations": int(optimum["iterations"]),
            "optimum_is_converged": bool(optimum["is_converged"]),
            "cells": cells,
        }
        kept = {"names": names, "losses": of_loss.totals, "tokens": of_loss.n_tokens}
        write_arrays(self.folder / DOCUMENTS, kept)
        return record


def _apart(states: list[State]) -> tuple[list[Heads], list[Best]]:
    """Splits states into the two parts of a checkpoint: parameters, and the rest."""
    return [state.heads for state in states], [state.progress for state in states]


def _second_moment(hidden: np.ndarray) -> np.ndarray:
    """Returns C, float64 [D, D], from one block of tokens at a time."""
    total = np.zeros((hidden.shape[1],) * 2)
    for start in range(0, len(hidden), _BLOCK):
        block = hidden[start : start + _BLOCK].astype(np.float64)
        total += block.T @ block
    return total / len(hidden)


def _first(features: Features, n: int) -> Features:
    return Features(features.hidden[:n], features.targets[:n], features.documents[:n])
