"""A scaling ladder: seven models with 20 tokens a parameter each, for a law of loss against size.

python -m bottleneck sweep --config=configs/ladder.py --workdir=gs://BUCKET/ladder --list \
    --config.data.paths=/data/text

lists it; without --list it is trained here, one rung after the other, and --index=3 is one of them
on a whole slice. A rung costs four to twelve times the one before, the last eight times all others.
Twenty tokens a parameter: Hoffmann et al. 2022; N is all parameters. The learning rate falls as
1/√D from 4e-3 at D = 64 and the batch grows with the tokens, by habit and not by a search.
--config.model.head_rank=64 repeats the ladder with a low head.
"""

from bottleneck.config import base

RUNGS = (
    # layers, D, heads, learning rate, B, steps           N   tokens    FLOPs
    (4, 64, 2, 4.0e-3, 16, 3_050),  #                 1.2 M     25 M  1.3e14
    (6, 128, 4, 2.8e-3, 32, 4_010),  #                3.3 M     66 M  1.0e15
    (8, 256, 4, 2.0e-3, 64, 6_420),  #               10.5 M    210 M  1.2e16
    (10, 384, 6, 1.6e-3, 128, 7_340),  #             24.0 M    481 M  6.6e16
    (12, 512, 8, 1.4e-3, 192, 9_400),  #             46.2 M    924 M  2.5e17
    (12, 768, 12, 1.2e-3, 256, 14_900),  #           97.6 M   1.95 G  1.1e18
    (24, 1024, 16, 1.0e-3, 512, 24_340),  #         319.1 M   6.38 G  1.2e19
)


def get_config():
    config = base()

    config.data.corpus = "text"
    config.data.paths = ("data/text",)
    config.data.tokenizer_vocab_size = 8192
    config.data.validation_fraction = 0.001

    config.model.vocab_size = 8192
    config.model.max_length = 512
    config.compute.dtype = "bfloat16"
    config.compute.remat = "dots"

    config.train.sequence_length = 512
    config.probe.every = 500
    config.probe.tokens = 2**17
    config.checkpoint.every = 500
    return config


def get_sweep():
    return [
        {
            "model.d_model": width,
            "model.n_layers": n_layers,
            "model.n_heads": n_heads,
            "optimizer.learning_rate": learning_rate,
            "optimizer.warmup_steps": steps // 50,
            "train.batch_size": batch_size,
            "train.steps": steps,
        }
        for n_layers, width, n_heads, learning_rate, batch_size, steps in RUNGS
    ]
