"""The Pythia suite, 14m to 12b, as EleutherAI trained it on the Pile: 143,000 steps of 2M tokens.

python -m bottleneck train --config=configs/pythia.py:160m --workdir=gs://BUCKET/pythia-160m \
    --config.data.paths=/data/pile/*.jsonl.zst --config.data.tokenizer=/data/20B_tokenizer.json

To expect, on the Pile (Godey et al. 2024, figure 1a, read off): 14m 4.36, 31m 4.00, 70m 3.64, 160m
3.24, 410m 2.84 nats per token at step 140,000. Sources: EleutherAI/pythia, models/*/*.yml; Biderman
et al. 2023, table 6. What differs: bfloat16 instead of float16 with loss scaling.
"""

from bottleneck.config import base
from bottleneck.model import family

# Peak learning rate by size. The 1b's README says 3e-4; the file it was trained from says 2.5e-4.
LEARNING_RATE = {
    "14m": 1e-3,
    "31m": 1e-3,
    "70m": 1e-3,
    "160m": 6e-4,
    "410m": 3e-4,
    "1b": 2.5e-4,
    "1.4b": 2e-4,
    "2.8b": 1.6e-4,
    "6.9b": 1.2e-4,
    "12b": 1.2e-4,
}


def get_config(size="160m"):
    config = base()
    config.seed = 1234

    config.data.corpus = "text"
    config.data.paths = ("data/pile/*.jsonl.zst",)
    config.data.tokenizer = "data/20B_tokenizer.json"  # GPT-NeoX-20B's
    config.data.validation_fraction = 0.0001

    config.model.update(family.pythia(size))
    config.compute.dtype = "bfloat16"
    config.compute.remat = "full"

    config.optimizer.learning_rate = LEARNING_RATE[size]
    config.optimizer.warmup_steps = 1430  # lr warm-up 0.01 of the run
    config.optimizer.final_fraction = 0.1
    config.optimizer.beta1, config.optimizer.beta2 = 0.9, 0.95
    config.optimizer.epsilon = 1e-8
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 1.0

    config.train.steps = 143_000
    config.train.batch_size = 1024
    config.train.sequence_length = 2048

    config.probe.every = 1000
    config.probe.tokens = 2**19

    # 154 checkpoints: 0, powers of two to 512, then every thousandth.
    config.checkpoint.every = 1000
    config.checkpoint.keep_every = 1000
    config.checkpoint.steps = (0, *(2**i for i in range(10)))
    return config
