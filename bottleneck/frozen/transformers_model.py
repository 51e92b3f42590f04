"""Causal language models of the transformers library, as sources of features; torch runs them.

B: sequences; L: tokens; D: hidden width; V: rows of the head.
"""

from __future__ import annotations

import importlib.util
import os

import jax.numpy as jnp
import numpy as np

from bottleneck.errors import UserError
from bottleneck.model.head import HeadFactors
from bottleneck.pretrained.hub import locate
from bottleneck.probes import geometry


class TransformersModel:
    """A model in float32, on torch's GPU or the CPU; never runs code from the hub."""

    def __init__(self, path_or_name: str | os.PathLike[str], revision: str | None = None):
        """Raises `UserError` if the library or model is missing, or the head is not linear."""
        if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
            raise UserError(
                "reading a model of the transformers library needs it and torch; "
                "in the repository: pip install -e '.[hf]'"
            )
        import torch
        import transformers

        self.folder = locate(path_or_name, revision)
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                self.folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"transformers cannot read {self.folder}: {reason}") from error
        head = model.get_output_embeddings()
        if head is None or getattr(head, "bias", None) is not None:
            raise UserError(f"{self.folder}: the head must be a matrix without a bias")
        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model.eval().to(self._device)
        text = model.config.get_text_config()
        self.name = os.fspath(path_or_name) + (f", {revision}" if revision else "")
        self.n_layers, self.max_length = text.num_hidden_layers, text.max_position_embeddings
        self.head = HeadFactors(jnp.asarray(head.weight.detach().float().cpu().numpy()), None)
        self.vocab_size, self.d_model = self.head.rows.shape

    def read(
        self, inputs: np.ndarray, weights: np.ndarray, layer: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns hidden states and sums as `Source.read` does."""
        with self._torch.no_grad():
            # The embedding comes first and the final norm's output last.
            states = self._model(self._tokens(inputs), output_hidden_states=True).hidden_states
        arrays = [state.float().cpu().numpy() for state in states]
        sums = [np.asarray(geometry.layer_sums(jnp.asarray(a), weights)) for a in arrays]
        return arrays[layer], np.stack(sums)

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        """Returns logits, float32 [B, L, V]."""
        with self._torch.no_grad():
            found: np.ndarray = self._model(self._tokens(inputs)).logits.float().cpu().numpy()
        return found

    def _tokens(self, inputs: np.ndarray) -> object:
        return self._torch.as_tensor(inputs, dtype=self._torch.long, device=self._device)
