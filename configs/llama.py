"""Llama 2 (7b, 13b) and small models built the same way (tinyllama-1.1b, smollm-360m, smollm-135m).

python -m bottleneck train --config=configs/llama.py:smollm-135m --workdir=runs/smollm \
    --config.data.paths=/data/text --config.data.tokenizer=/data/smollm/tokenizer.json

Optimizer: Touvron et al. 2023, section 2.2 (β₂ 0.95, ε 1e-5, 2000 steps of warm-up, 4M tokens a
step, peak 3e-4); the small ones take the peaks and batches of their own releases, about 2M tokens.
"""

from bottleneck.config import base
from bottleneck.model import family

LEARNING_RATE = {
    "7b": 3e-4,
    "13b": 3e-4,
    "tinyllama-1.1b": 4e-4,
    "smollm-360m": 3e-3,
    "smollm-135m": 3e-3,
}


def get_config(size="smollm-135m"):
    config = base()

    config.data.corpus = "text"
    config.data.paths = ("data/text",)
    config.data.tokenizer = "data/llama/tokenizer.json"

    config.model.update(family.llama(size))
    config.compute.dtype = "bfloat16"
    config.compute.remat = "full"

    config.optimizer.learning_rate = LEARNING_RATE[size]
    config.optimizer.warmup_steps = 2000
    config.optimizer.epsilon = 1e-5 if size in ("7b", "13b") else 1e-8

    config.train.steps = 100_000
    config.train.batch_size = 1024
    config.train.sequence_length = config.model.max_length

    config.probe.every = 1000
    config.probe.tokens = 2**19
    config.checkpoint.every = 1000
    config.checkpoint.keep_every = 10_000
    return config
