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
from bottleneck.frozen.features import FeatureSet
from bottleneck.frozen.figures import DOCUMENTS, RESULTS, load_results
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
        validation, some = features.part("validation"), slice(_VALIDATION_TOKENS)
        self._documents = validation.documents[some]
        self._validation = (
            jnp.asarray(validation.hidden[some], jnp.float32),
            jnp.asarray(validation.targets[some]),
        )
        moment = _second_moment(self._train.hidden)
        ridge = 1 / (len(self._train.targets) * plan.logit_sd**2)
        self._training = Training(plan.loss_chunk, jnp.float32(moment), ridge)
        core = spectrum.read_core(features.head)
        self._cuts = {
            "plain": truncation.plain(core.raw),
            "whitened": truncation.whitened(core.raw, moment),
        }
        self._spectrum = core.resolved(self._cuts["plain"].singular_values).values
        pairs = itertools.product(plan.starts, plan.ranks)
        self._groups = {f"{start}/{rank}": (start, rank) for start, rank in pairs}
        self._order = BatchOrder(len(self._train.targets), plan.batch_tokens, plan.seed)

    def run(self) -> dict[str, Any]:
        """Returns the contents of results.json; skips the stages that are complete."""
        with self._workspace.opened() as results:
            if results:
                console.print(f"{self.folder} holds this study, complete; nothing to do")
                return load_results(self.folder)
            rates = self._search()
            optimum = self._optimum()
            of_groups = [np.array([rates[name]]) for name in self._groups]
            with Checkpointer(self.folder / "state", CheckpointConfig(keep_last=1)) as saved:
                states = self._trained(of_groups, self.plan.steps, "steps of all heads", saved)
            results.update(self._results(rates, optimum, states))
        return results

    def _search(self) -> dict[str, float]:
        """Returns group → the learning rate of lowest validation loss after a short training."""
        path = self.folder / _SEARCH
        if path.exists():
            found: dict[str, float] = json_files.read(path, _REMEDY).get("best", {})
            if not all(isinstance(found.get(name), float) for name in self._groups):
                raise UserError(f"{path} lacks the rates of some heads; {_REMEDY}")
            return found
        grid = np.array(self.plan.learning_rates)
        rates = [grid] * len(self._groups)
        states = self._trained(rates, self.plan.search_steps, "steps with each learning rate")
        tried = {
            name: np.asarray(state.progress.best_loss).tolist()
            for name, state in zip(self._groups, states, strict=True)
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

    def _trained(
        self, rates: list[np.ndarray], steps: int, what: str, saved: Checkpointer | None = None
    ) -> list[State]:
        """Returns the states of all groups after n steps; `saved` keeps them at each evaluation.

        Args:
            rates: the peak learning rates of each group.
        """
        states, start = [], 0
        for i, (kind, rank) in enumerate(self._groups.values()):
            key = jax.random.fold_in(jax.random.key(self.plan.seed), i)
            own, cut = self.features.head, self._cuts.get(kind)
            heads = starting_heads(kind, rank, own, cut, len(rates[i]), key)
            states.append(self._training.start(heads))
        latest = None if saved is None else saved.latest_step()
        if saved is not None and latest is not None:
            abstract = jax.eval_shape(lambda: _apart(states))
            states = [State(*parts) for parts in zip(*saved.restore(latest, abstract), strict=True)]
            start = latest
        else:
            states = self._evaluated(states, 0)
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
        return self._training.evaluate(heads, *self._validation)

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
        full = {"own": own}
        full["optimum"] = HeadFactors(jnp.asarray(optimum["rows"]))
        full["optimum_stopped"] = HeadFactors(jnp.asarray(optimum["best_rows"]))
        scores = [self._scores(head) for head in full.values()]
        cells = []
        for (name, (start, rank)), state in zip(self._groups.items(), states, strict=True):
            cut = self._cuts.get(start)
            before = None if cut is None else self._scores(cut_head(own, cut, rank))[0]
            cells.append(
                {
                    "start": start,
                    "rank": rank,
                    "learning_rate": rates[name],
                    "best_step": int(state.progress.best_step[0]),
                    "start_loss": None if before is None else float(before.mean()),
                    "converged_loss": float(self._scores(state.heads.one(0))[0].mean()),
                    "w_error": float(w_error[rank - 1]),
                }
            )
            scores.append(self._scores(state.progress.best.one(0)))
        losses, rights = (np.stack(column, axis=1) for column in zip(*scores, strict=True))
        # Gaps to the best full-rank head are paired by token.
        measured = {"loss": losses, "accuracy": rights, "gap": losses - losses[:, [2]]}
        sums = {name: DocumentSums.of(x, self._documents) for name, x in measured.items()}
        for i, cell in enumerate(cells, start=len(full)):
            for name, some in sums.items():
                cell[name] = float(some.means()[i])
                cell[f"{name}_se"] = float(some.standard_errors()[i])
        record = {
            "model": self.features.manifest.model,
            "d_model": self.features.manifest.d_model,
            "train_tokens": len(self._train.targets),
            "validation_tokens": len(self._documents),
            **dict(zip(full, sums["loss"].means().tolist(), strict=False)),
            "optimum_objective": float(optimum["objective"]),
            "optimum_iterations": int(optimum["iterations"]),
            "optimum_is_converged": bool(optimum["is_converged"]),
            "cells": cells,
        }
        kept = {"names": [*full, *self._groups], "losses": sums["loss"].totals}
        write_arrays(self.folder / DOCUMENTS, kept | {"tokens": sums["loss"].n_tokens})
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
