"""The positive control: a language of known rank ρ, to see whether the measured rank is the true one.

for R in 3 4 5 6 7 8; do
    python -m bottleneck train --config=configs/known_rank.py:6 --config.model.head_rank=$R \
        --workdir=runs/known-rank-6/rank$R
done
"""

from bottleneck.config import base


def get_config(rank="8"):
    config = base()

    config.data.corpus = "known_rank"
    config.data.language_rank = int(rank)
    config.data.language_tokens = 128
    config.data.language_documents = 24_000
    config.data.heldout_fraction = 0.1

    config.model.vocab_size = 128
    config.model.d_model = 32
    config.model.n_layers = 1
    config.model.n_heads = 2
    config.model.d_ff = 64
    config.model.max_length = 64
    config.model.head_rank = int(rank)

    # Decay on A and B is a penalty on the nuclear norm of A B, so it would move the optimum.
    config.optimizer.weight_decay = 0.0
    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup_steps = 20
    config.optimizer.final_fraction = 0.01

    config.train.steps = 600
    config.train.batch_size = 64
    config.train.sequence_length = 64

    config.probe.every = 200
    config.probe.tokens = 2**17
    config.checkpoint.every = 600
    return config
