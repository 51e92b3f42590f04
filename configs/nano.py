"""The demo: a 4-layer Pythia-style model on the text of Python's own standard library.

python -m bottleneck train --config=configs/nano.py --workdir=runs/nano
"""

from bottleneck.config import base


def get_config():
    config = base()

    config.data.corpus = "stdlib"
    config.data.tokenizer_vocab_size = 4096
    config.data.validation_fraction = 0.05

    config.model.vocab_size = 4096
    config.model.d_model = 128
    config.model.n_layers = 4
    config.model.n_heads = 4
    config.model.max_length = 128

    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 20

    config.train.steps = 150
    config.train.batch_size = 16
    config.train.sequence_length = 128

    config.probe.every = 25
    config.probe.tokens = 4096
    config.probe.ranks = (1, 4, 16, 64)
    config.checkpoint.every = 50
    return config
