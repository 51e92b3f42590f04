"""Training: the loop, the compiled step, the optimizer and its schedule, reports, divergence.

B: sequences in a batch; L: tokens in a sequence.

>>> import jax
>>> from bottleneck import training
>>> from bottleneck.config import Config, DataConfig, ModelConfig
>>> from bottleneck.parallel import make_mesh
>>> shape = ModelConfig(vocab_size=300, d_model=32, n_layers=1, n_heads=4, head_rank=8)
>>> config = Config(data=DataConfig(tokenizer_vocab_size=300), model=shape)
>>> program = training.make_train_program(config, make_mesh(config.compute.mesh))
>>> params, opt_state = program.init()
>>> params["head"]["rows"].shape
(384, 8)

One update is `program.step(params, opt_state, batch)`, by the rule of `make_optimizer` and
`learning_rate_schedule`. The whole run is `train(config, workdir)`: it prepares the tokens, resumes
from the newest checkpoint, and probes and saves on the way.
"""

from bottleneck.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "loop": ["train"],
        "step": ["TrainProgram", "make_train_program"],
        "optimizer": ["make_optimizer"],
        "schedules": ["learning_rate_schedule"],
    },
)
