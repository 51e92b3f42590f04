"""The positive control: a language of known rank ρ, to see whether the measured one is the same.

make calibration

trains a head of each rank around ρ = 6 and ρ = 12. To expect, in nats per token above the entropy
rate of the language, ± 0.004, and beside it the best that any head of that rank can have; a run
takes 20 to 40 seconds on two cores:

    R − ρ             −3     −2     −1      0     +1     +2
    ρ = 6   trained  0.344  0.217  0.109  0.007  0.007  0.007
            best     0.335  0.207  0.095  0      0      0
    ρ = 12  trained  0.145  0.095  0.046  0.005  0.005  0.005
            best     0.134  0.084  0.040  0      0      0
"""

from bottleneck.config import base


def get_config(rank="8"):
    config = base()

    config.data.corpus = "known_rank"
    config.data.language_rank = int(rank)
    config.data.language_tokens = 128
    config.data.language_documents = 24_000
    config.data.validation_fraction = 0.1

    config.model.vocab_size = 128
    config.model.d_model = 32
    config.model.n_layers = 1
    config.model.n_heads = 2
    config.model.d_ff = 64
    config.model.max_length = 64
    config.model.head_rank = int(rank)

    # Decay on A and B is a penalty on the nuclear norm of A B, so it would move the optimum.
    config.optimizer.weight_decay = 0.0
    config.optimizer.learning_rate = 2e-2
    config.optimizer.warmup_steps = 20
    config.optimizer.final_fraction = 0.01

    config.train.steps = 400
    config.train.batch_size = 64
    config.train.sequence_length = 64

    config.probe.every = 400
    config.probe.tokens = 2**17
    config.checkpoint.every = 400
    return config
