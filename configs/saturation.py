"""Do tiny models saturate, and what makes them: two widths × batch × weight decay × precision.

python -m bottleneck sweep --config=configs/saturation.py --workdir=runs/saturation --parallel=4 \
    --config.data.paths=/data/text

Pythia-style models of 0.3 and 0.8 million parameters see 4.3 billion tokens, some 600 and 250 times
what is optimal for them (Hoffmann et al. 2022). What to expect is not known, hence the sweep: small
Pythias lose late in training, but trained with another batch or other kernels they do not
(EleutherAI's Pythia v0 and small-batch runs), so saturation may belong to batch, weight decay and
precision as much as to the width. Look for a validation loss that rises
while singular entropy jumps.
The whole is 2.8e17 FLOPs.
"""

from bottleneck.config import base
from bottleneck.sweep import product, zipped

TOKENS = 2**32
LENGTH = 256


def get_config():
    config = base()

    config.data.corpus = "text"
    config.data.paths = ("data/text",)
    config.data.tokenizer_vocab_size = 4096
    config.data.validation_fraction = 0.001

    config.model.vocab_size = 4096
    config.model.n_layers = 6  # as Pythia-14m
    config.model.n_heads = 4
    config.model.max_length = LENGTH

    config.optimizer.learning_rate = 1e-3  # Pythia-14m's
    config.optimizer.final_fraction = 0.1

    config.train.sequence_length = LENGTH
    config.probe.tokens = 2**17
    return config


def get_sweep():
    batch_sizes = (64, 256, 1024)
    steps = [TOKENS // (LENGTH * batch_size) for batch_size in batch_sizes]
    return product(
        {"model.d_model": (32, 64)},
        zipped(
            {
                "train.batch_size": batch_sizes,
                "train.steps": steps,
                "optimizer.warmup_steps": [n // 100 for n in steps],
                "probe.every": [n // 128 for n in steps],  # at the same tokens in all cells
                "checkpoint.every": [n // 128 for n in steps],
                "checkpoint.keep_every": [n // 16 for n in steps],
            }
        ),
        {"optimizer.weight_decay": (0.0, 0.1), "compute.dtype": ("float32", "bfloat16")},
    )
