"""Our models as models of the LM Evaluation Harness, whose tasks are text.

Text and requests become tokens exactly as in the harness's own model of transformers. So both give
the same numbers for the same weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tokenizers import Tokenizer

from bottleneck.data import tokenizer as tokenization
from bottleneck.errors import UserError
from bottleneck.pretrained.scoring import Scorer

_LONGEST_ANSWER = 256  # tokens, if a task sets no limit; the default of the harness's models


class HarnessModel(TemplateLM):
    """Answers the three kinds of requests of the harness; generates greedily."""

    def __init__(self, scorer: Scorer, tokenizer: Tokenizer, *, begins_with: int, ends_with: int):
        """
        Args:
            begins_with: the token before a text without a context.
            ends_with: the token that ends a text.
        """
        super().__init__()
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = (
            False  # like the harness: a spelled-out special token counts
        )
        self._scorer, self._tokenizer = scorer, tokenizer
        self._begins_with, self._ends_with = begins_with, ends_with
        self.max_length = scorer.config.max_length

    @property
    def eot_token_id(self) -> int:
        return self._ends_with

    @property
    def prefix_token_id(self) -> int:
        return self._begins_with

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Encodes a text; the tokenizer adds its special tokens unless told otherwise."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.text([self._begins_with], whole=True))
        return self._tokenizer.encode(string, add_special_tokens=add_special_tokens).ids

    def text(self, tokens: list[int], *, whole: bool = False) -> str:
        """Decodes tokens, with the special ones if `whole`."""
        return self._tokenizer.decode(tokens, skip_special_tokens=not whole)

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        """Returns (log-probability, is greedy) for each (…, context, continuation)."""
        # Truncated on the left, in the context.
        sequences = [
            ((context + continuation)[-(self.max_length + 1) :], len(continuation))
            for _, context, continuation in requests
        ]
        for _, n in sequences:
            if n > self.max_length:
                raise UserError(
                    f"an answer has {n} tokens and the model takes {self.max_length}; choose "
                    "another task"
                )
        scores = self._scorer.score(sequences)
        return [(score.log_probability, score.is_greedy) for score in scores]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of whole texts, over windows with disjoint targets."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            pairs = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            of_text = [(None, *make_disjoint_window(pair)) for pair in pairs]
            windows += of_text
            owners += [i] * len(of_text)
        totals = [0.0] * len(requests)
        for i, (log_probability, _) in zip(
            owners, self._loglikelihood_tokens(windows), strict=True
        ):
            totals[i] += log_probability
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continues contexts greedily, each up to its first stop sequence."""
        ending = self.text([self._ends_with], whole=True)
        texts = []
        for request in requests:
            context, asked = request.args
            texts.append(_Text(self, context, asked, ending))
        while waiting := [text for text in texts if not text.is_done]:
            next_tokens = self._scorer.extend([text.tokens for text in waiting])
            for text, token in zip(waiting, next_tokens, strict=True):
                text.take(token)
        return [text.answer() for text in texts]


class _Text:
    """A text during generation."""

    def __init__(self, model: HarnessModel, context: str, asked: dict[str, Any], ending: str):
        options: Any = normalize_gen_kwargs(asked, _LONGEST_ANSWER)
        if options["do_sample"]:
            raise UserError("a task asks for sampled text; only greedy decoding is supported")
        room = model.max_length - options["max_gen_toks"]
        if room < 1:
            raise UserError(
                f"a task asks for {options['max_gen_toks']} tokens of text; the model takes "
                f"{model.max_length}, which leaves no room for a context"
            )
        self._model = model
        self._stops = handle_stop_sequences(options["until"], eos=ending)
        self.tokens = model.tok_encode(context)[-room:]
        self._n_context, self._n_most = len(self.tokens), options["max_gen_toks"]
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
    names: dict[str, Any] = {}
    if config.is_file():
        try:
            names = json.loads(config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{config} is not JSON: {error}") from error

    def token(key: str) -> int | None:
        name = names.get(key)
        name = name.get("content") if isinstance(name, dict) else name
        return None if name is None else tokenizer.token_to_id(name)

    end = token("eos_token")
    end = tokenization.end_of_text(tokenizer) if end is None else end
    begin = token("bos_token")
    return (end if begin is None else begin), end
