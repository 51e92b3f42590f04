"""GPT-2, small to xl, on any text: the architecture as released, the training as is usual today.

python -m bottleneck train --config=configs/gpt2.py:small --workdir=runs/gpt2-small \
    --config.data.paths=/data/text --config.data.tokenizer=/data/gpt2/tokenizer.json

OpenAI published no recipe. The learning rates are those of Brown et al. 2020, table 2.1, for the
sizes nearest; batch and length give half a million tokens a step as there.
"""

from bottleneck.config import base
from bottleneck.model import family

LEARNING_RATE = {"small": 6e-4, "medium": 3e-4, "large": 2.5e-4, "xl": 2e-4}


def get_config(size="small"):
    config = base()

    config.data.corpus = "text"
    config.data.paths = ("data/text",)
    config.data.tokenizer = "data/gpt2/tokenizer.json"

    config.model.update(family.gpt2(size))
    config.model.vocab_multiple = 128  # 47 rows more than released; 1 for the released count
    config.compute.dtype = "bfloat16"
    config.compute.remat = "full"

    config.optimizer.learning_rate = LEARNING_RATE[size]
    config.optimizer.warmup_steps = 700

    config.train.steps = 20_000
    config.train.batch_size = 512
    config.train.sequence_length = 1024

    config.probe.every = 500
    config.probe.tokens = 2**18
    config.checkpoint.every = 500
    config.checkpoint.keep_every = 5000
    return config
