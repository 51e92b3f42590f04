"""Models that others trained: released weights in and out, series of checkpoints, evaluation.

The families are GPT-NeoX (Pythia), GPT-2 and Llama. A model is a folder of safetensors or a name on
the hub, such as "EleutherAI/pythia-160m", and becomes (config, parameters):

>>> from tempfile import TemporaryDirectory
>>> import jax
>>> from bottleneck import pretrained
>>> from bottleneck.config import ModelConfig
>>> from bottleneck.model import transformer

>>> config = ModelConfig(vocab_size=50, d_model=16, n_layers=1, n_heads=2, head_rank=4)
>>> params = transformer.init_params(config, jax.random.key(0))
>>> with TemporaryDirectory() as parent:
...     pretrained.save_pretrained(config, params, f"{parent}/model")
...     config, params = pretrained.from_pretrained(f"{parent}/model")
>>> config.vocab_size, config.head_rank, params["head"]["rows"].shape  # no family has factors
(50, None, (50, 16))

`import_run` makes a run folder of a released model. `measure_series` makes one of the measurements
of all its checkpoints. `Scorer` gives log-probabilities of tokens. The module `evaluation` runs the
LM Evaluation Harness, and needs the extra [eval].
"""

from bottleneck.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "huggingface": ["from_pretrained", "save_pretrained"],
        "hub": ["locate"],
        "imported_run": ["import_run"],
        "series_source": ["Release", "Series", "open_series", "releases"],
        "series": ["audit_series", "measure_series"],
        "scoring": ["Score", "Scorer"],
    },
)
