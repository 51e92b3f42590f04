"""Runs tasks of the LM Evaluation Harness on a run, and stores their metrics.

Text and requests become tokens exactly as in the harness's own model of transformers. So both give
the same numbers for the same weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tokenizers import Tokenizer

from bottleneck.data import tokenizer as tokenization
from bottleneck.data.tokens import prepare
from bottleneck.errors import UserError
from bottleneck.pretrained.imported_run import TOKENIZER, TOKENIZER_CONFIG
from bottleneck.pretrained.scoring import Scorer
from bottleneck.runs.reading import Run

EVALUATION = "evaluation.jsonl"

_LONGEST_ANSWER = 256  # tokens, if a task sets no limit; the default of the harness's models

Row = dict[str, Any]  # step, task, shots, limit, harness; the task's metrics and their _stderr


def evaluate(
    run: Run,
    steps: list[int],
    tasks: list[str],
    *,
    limit: int | None = None,
    batch_size: int = 16,
    include: Path | None = None,
) -> list[Row]:
    """Returns the metrics of each task at each step; a task sets its own number of shots.

    Args:
        steps: of checkpoints; an empty list takes the last.
        limit: uses only the first examples of each task; None uses all.
        batch_size: sequences per forward pass.
        include: a folder with your own tasks, in YAML.
    Raises:
        UserError: if a task is unknown, its data cannot be loaded, or a step has no checkpoint.
    """
    steps = steps or run.steps[-1:]
    if missing := sorted(set(steps or [0]) - set(run.steps)):
        saved = ", ".join(map(str, run.steps)) or "none"
        raise UserError(f"{run.path} has no checkpoint of step {missing[0]}; it has {saved}")
    manager = TaskManager(include_path=None if include is None else str(include))
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise UserError(f"the harness has no task {unknown[0]}; lm_eval ls tasks lists them")
    try:
        manager.load(tasks)
    except Exception as error:  # of any library: no network, no such data set, a missing file
        reason = " ".join(str(error).split())
        raise UserError(f"the data of {', '.join(tasks)} cannot be loaded: {reason}") from error
    tokenizer = tokenizer_of(run)
    begin, end = ends_of_text(tokenizer, run.path / TOKENIZER_CONFIG)
    rows = []
    for step in steps:
        model, compute = run.config.model, run.config.compute
        scorer = Scorer(model, run.params(step), compute=compute, batch_size=batch_size)
        harness_model = HarnessModel(scorer, tokenizer, begins_with=begin, ends_with=end)
        results = lm_eval.simple_evaluate(
            harness_model, tasks=tasks, limit=limit, task_manager=manager, log_samples=False
        )
        for task, found in results["results"].items():
            row: Row = {"step": step, "task": task, "shots": results["n-shot"].get(task)}
            row |= {"limit": limit, "harness": lm_eval.__version__}
            row |= {k.removesuffix(",none"): v for k, v in found.items() if isinstance(v, float)}
            rows.append(row)
    return rows


def tokenizer_of(run: Run) -> Tokenizer:
    """Returns the tokenizer of an imported model, or that of a run's corpus."""
    if (run.path / TOKENIZER).is_file():
        return tokenization.load(run.path / TOKENIZER)
    if run.trained_on is None:
        raise UserError(f"{run.path} has no {TOKENIZER}; copy that of the model there")
    return prepare(run.config.data).tokenizer()


def append(path: Path, rows: list[Row]) -> None:
    """Appends rows to a file, one JSON object per line; the last line of a (step, task) counts."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; choose another file with --output"
        ) from error


class HarnessModel(TemplateLM):
    """Answers the three kinds of requests of the harness; generates greedily."""

    eot_token_id = prefix_token_id = 0  # properties of the base class, attributes of each model

    def __init__(self, scorer: Scorer, tokenizer: Tokenizer, *, begins_with: int, ends_with: int):
        """Takes the token before a text without a context, and the one that ends a text."""
        super().__init__()
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = False  # the harness too takes them if spelled out
        self._scorer, self._tokenizer = scorer, tokenizer
        self.prefix_token_id, self.eot_token_id = begins_with, ends_with
        self.max_length = scorer.config.max_length

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Encodes a text; the tokenizer adds its special tokens unless told otherwise."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(
                self.text([self.prefix_token_id], whole=True)
            )
        return self._tokenizer.encode(string, add_special_tokens=add_special_tokens).ids

    def text(self, tokens: list[int], *, whole: bool = False) -> str:
        """Decodes tokens, with the special ones if `whole`."""
        return self._tokenizer.decode(tokens, skip_special_tokens=not whole)

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        """Returns (log-probability, is greedy) for each (…, context, continuation)."""
        for _, _, answer in requests:
            if len(answer) > self.max_length:
                raise UserError(
                    f"an answer has {len(answer)} tokens and the model takes {self.max_length}; "
                    "choose another task"
                )
        # Truncated on the left, in the context.
        window = slice(-(self.max_length + 1), None)
        scored = [((context + answer)[window], len(answer)) for _, context, answer in requests]
        return [(s.log_probability, s.is_greedy) for s in self._scorer.score(scored)]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of whole texts, over windows with disjoint targets."""
        windows = [
            (i, (None, *make_disjoint_window(pair)))
            for i, request in enumerate(requests)
            for pair in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
        ]
        totals = [0.0] * len(requests)
        scores = self._loglikelihood_tokens([window for _, window in windows])
        for (i, _), (log_probability, _) in zip(windows, scores, strict=True):
            totals[i] += log_probability
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continues contexts greedily, each up to its first stop sequence."""
        ending = self.text([self.eot_token_id], whole=True)
        texts = [_Text(self, request.args, ending) for request in requests]
        while waiting := [text for text in texts if not text.is_done]:
            next_tokens = self._scorer.extend([text.tokens for text in waiting])
            for text, token in zip(waiting, next_tokens, strict=True):
                text.take(token)
        return [text.answer() for text in texts]


class _Text:
    """A text during generation."""

    def __init__(self, model: HarnessModel, request: tuple[Any, ...], ending: str):
        context, asked = request
        options: Any = normalize_gen_kwargs(asked, _LONGEST_ANSWER)
        if options["do_sample"]:
            raise UserError("a task asks for sampled text; only greedy decoding is supported")
        self._n_most = options["max_gen_toks"]
        room = model.max_length - self._n_most
        if room < 1:
            raise UserError(
                f"a task asks for {self._n_most} tokens of text; the model takes "
                f"{model.max_length}, which leaves no room for a context"
            )
        self._model = model
        self._stops = handle_stop_sequences(options["until"], eos=ending)
        self.tokens = model.tok_encode(context)[-room:]
        self._n_context = len(self.tokens)
        self.is_done = False

    def take(self, token: int) -> None:
        self.tokens.append(token)
        self.is_done = (
            token == self._model.eot_token_id
            or len(self.tokens) - self._n_context == self._n_most
            or any(stop and stop in self._generated() for stop in self._stops)
        )

    def _generated(self) -> str:
        return self._model.text(self.tokens[self._n_context :])

    def answer(self) -> str:
        return postprocess_generated_text(self._generated(), self._stops, None)


def ends_of_text(tokenizer: Tokenizer, config: Path) -> tuple[int, int]:
    """Returns the tokens that begin and end a text.

    Args:
        config: the tokenizer_config.json of a released model, which names them. If it is missing,
            texts begin and end with the tokenizer's end of text.
    """
    try:
        names = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except ValueError as error:
        raise UserError(f"{config} is not JSON: {error}") from error

    def token(key: str) -> int | None:
        name = names.get(key)
        name = name.get("content") if isinstance(name, dict) else name
        return None if name is None else tokenizer.token_to_id(name)

    begin, end = token("bos_token"), token("eos_token")
    end = tokenization.end_of_text(tokenizer) if end is None else end
    return (end if begin is None else begin), end
