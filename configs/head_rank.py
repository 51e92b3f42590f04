"""Loss against the head's rank at several widths: 18 cells of one text and one number of tokens.

python -m bottleneck sweep --config=configs/head_rank.py --workdir=runs/head_rank --parallel=2
python -m bottleneck analyze runs/head_rank

To expect (Godey et al. 2024, figure 6): at each width the loss falls with R and is flat from some R
on, which is to be read off the fitted law in the report. The whole is 8.1e14 FLOPs. A text of your
own, --config.data.corpus=text --config.data.paths=…, and more --config.train.steps make it sharper:
4 million tokens are seen here, about twice all there are in the standard library.
"""

from bottleneck.config import base
from bottleneck.sweep import product, zipped


def get_config():
    config = base()

    config.data.corpus = "stdlib"
    config.data.tokenizer_vocab_size = 4096
    config.data.validation_fraction = 0.05

    config.model.vocab_size = 4096
    config.model.n_layers = 4
    config.model.max_length = 128
    config.compute.loss_chunk = 256

    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 50

    config.train.steps = 2000
    config.train.batch_size = 16
    config.train.sequence_length = 128

    config.probe.every = 200
    config.probe.tokens = 2**14
    config.checkpoint.every = 200
    return config


def get_sweep():
    widths = zipped({"model.d_model": (64, 128, 256), "model.n_heads": (2, 4, 8)})
    ranks = {"model.head_rank": (4, 8, 16, 32, 64, 128, None)}
    return [
        cell
        for cell in product(widths, ranks)
        # A head of rank D is a full one with more parameters.
        if cell["model.head_rank"] is None or cell["model.head_rank"] < cell["model.d_model"]
    ]
