"""The typed, validated description of an experiment.

A file in configs/ starts from `base()`, an `ml_collections.ConfigDict` of all fields and defaults.
The result, with the command line's overrides, goes through `parse` into these dataclasses. Each
section checks its own fields, and `Config` the fields that must agree, so the rest of the program
sees valid values only. Imports no array library, which would delay the report of a bad value.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from ml_collections import config_dict

from bottleneck.sections import Section, bounded, build, defaults, positive, require


@dataclass(frozen=True)
class DataConfig(Section):
    """The corpus, and the tokenizer."""

    prefix: ClassVar[str] = "data."

    # "stdlib": the running Python's own standard library; "text": files; "tfds": a TFDS data set;
    # "known_rank": a synthetic language whose logits have a known rank.
    corpus: Literal["stdlib", "text", "tfds", "known_rank"] = "stdlib"
    paths: tuple[str, ...] = ()  # corpus="text": files, folders and globs
    text_field: str = "text"  # name of the column or key that holds the text of a record
    tfds_name: str = ""
    tfds_split: str = "train"
    tfds_data_dir: str | None = None
    language_rank: int = positive(8)  # ρ of corpus="known_rank"
    language_tokens: int = bounded(128, low=2, high=2**14)  # its vocabulary, end of text included
    language_documents: int = positive(2**15)
    language_seed: int = bounded(0, low=0)
    tokenizer: str | None = None  # path of a tokenizer.json; None trains a byte-level BPE
    tokenizer_vocab_size: int = bounded(8192, low=257)  # of the trained BPE
    validation_fraction: float = bounded(0.02, low=0.0, high=0.5)  # of the documents
    cache_dir: str = "~/.cache/bottleneck"  # holds tokenizers and tokens

    def check(self) -> None:
        if self.corpus == "text":
            self.require("paths", bool(self.paths), "at least one file, folder or glob")
        if self.corpus == "tfds":
            self.require("tfds_name", bool(self.tfds_name), "the name of a data set")
        if self.corpus == "known_rank":
            allowed = f"below data.language_tokens={self.language_tokens}"
            self.require("language_rank", self.language_rank < self.language_tokens, allowed)
            allowed = "None, because data.corpus='known_rank' has its own"
            self.require("tokenizer", self.tokenizer is None, allowed)

    @property
    def vocabulary(self) -> tuple[str, int]:
        """The field that bounds the tokenizer's vocabulary, and its value; 0 with a given file."""
        if self.corpus == "known_rank":
            return "data.language_tokens", self.language_tokens
        return "data.tokenizer_vocab_size", 0 if self.tokenizer else self.tokenizer_vocab_size


@dataclass(frozen=True)
class ModelConfig(Section):
    """A decoder-only transformer; families differ only in these fields."""

    prefix: ClassVar[str] = "model."

    vocab_size: int = positive(8192)  # unpadded
    vocab_multiple: int = positive(128)  # V is vocab_size rounded up to a multiple of this
    d_model: int = positive(256)  # D
    n_layers: int = positive(4)
    n_heads: int = positive(4)  # H
    n_kv_heads: int | None = positive(None)  # None: n_heads
    d_ff: int | None = positive(None)  # F; None: 4·D
    head_rank: int | None = positive(None)  # R; None: full
    # "matched": logits with the variance of a full head's; "normal": N(0, 1) factors (the paper).
    head_init: Literal["matched", "normal"] = "matched"
    tie_embeddings: bool = False
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_epsilon: float = bounded(1e-5, low=0.0)
    mlp: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu"
    use_bias: bool = True  # of the linear maps of attention and MLP; the head never has one
    parallel_residual: bool = True  # x + Attention(LN₁ x) + MLP(LN₂ x), as GPT-NeoX
    position: Literal["rotary", "learned"] = "rotary"
    max_length: int = positive(2048)  # maximum L; rows of learned positions
    rotary_fraction: float = bounded(0.25, low=0.0, high=1.0)  # of the size K of a head
    rotary_theta: float = bounded(10_000.0, low=1.0)
    init_std: float | None = bounded(None, low=0.0)  # None: sqrt(2 / (5·D)), GPT-NeoX small_init
    # For the two maps that write to the residual stream. None: 2 / (n_layers·sqrt(D)), wang_init.
    output_init_std: float | None = bounded(None, low=0.0)

    def check(self) -> None:
        heads = f"model.n_heads={self.n_heads}"
        near = _nearest_multiples(self.d_model, self.n_heads)
        is_multiple = self.d_model % self.n_heads == 0
        self.require("d_model", is_multiple, f"a multiple of {heads}, such as {near}")
        is_divisor = self.n_heads % self.kv_heads == 0
        self.require("n_kv_heads", is_divisor, f"a divisor of {heads}")
        allowed = f"at most model.d_model={self.d_model}, or None for a full head"
        self.require("head_rank", (self.head_rank or 1) <= self.d_model, allowed)
        is_even = self.position != "rotary" or self.rotary_size % 2 == 0
        allowed = f"a fraction of the head size {self.head_size} that is an even number"
        self.require("rotary_fraction", is_even, allowed)

    @property
    def padded_vocab_size(self) -> int:
        """V: the rows of the head."""
        return _round_up(self.vocab_size, self.vocab_multiple)

    @property
    def head_size(self) -> int:
        """K: the size of one attention head."""
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def mlp_width(self) -> int:
        """F: the width of the MLP."""
        return self.d_ff or 4 * self.d_model

    @property
    def weight_std(self) -> float:
        """Standard deviation of a fresh matrix (GPT-NeoX small_init by default)."""
        return (2 / (5 * self.d_model)) ** 0.5 if self.init_std is None else self.init_std

    @property
    def output_weight_std(self) -> float:
        """The same for maps that write to the residual stream (GPT-NeoX wang_init by default)."""
        wang_init = 2 / (self.n_layers * self.d_model**0.5)
        return wang_init if self.output_init_std is None else self.output_init_std

    @property
    def rotary_size(self) -> int:
        """Dimensions of each head that are rotated."""
        return int(self.head_size * self.rotary_fraction)


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """AdamW with warm-up and a cosine decay to a fraction of the peak, as for Pythia."""

    prefix: ClassVar[str] = "optimizer."

    learning_rate: float = bounded(1e-3, low=0.0)  # peak
    warmup_steps: int = bounded(0, low=0)
    final_fraction: float = bounded(0.1, low=0.0, high=1.0)  # last over peak learning rate
    beta1: float = bounded(0.9, low=0.0, high=1.0)
    beta2: float = bounded(0.95, low=0.0, high=1.0)
    epsilon: float = bounded(1e-8, low=0.0)
    weight_decay: float = bounded(0.1, low=0.0)  # on matrices only
    clip_norm: float | None = bounded(1.0, low=1e-12)  # of the whole gradient; None: no clipping


@dataclass(frozen=True)
class TrainConfig(Section):
    prefix: ClassVar[str] = "train."

    steps: int = positive(1000)
    batch_size: int = positive(16)  # B: sequences in a step, all devices and micro-batches together
    sequence_length: int = positive(256)  # L
    z_loss: float = bounded(0.0, low=0.0)  # weight of the squared log-partition
    log_every: int = positive(10)
    # The run ends after this many steps in a row with a loss or gradient that is not finite.
    bad_steps: int = positive(1)
    skip_bad_batches: bool = False  # keep the parameters at such a step

    def check(self) -> None:
        allowed = "at least 2 with train.skip_bad_batches=True; 1 would skip none"
        self.require("bad_steps", self.bad_steps > 1 or not self.skip_bad_batches, allowed)


@dataclass(frozen=True)
class MeshConfig(Section):
    """Devices along each axis; -1 on one axis takes all the rest."""

    prefix: ClassVar[str] = "compute.mesh."

    replica: int = bounded(1, low=-1)
    fsdp: int = bounded(-1, low=-1)
    tensor: int = bounded(1, low=-1)

    def check(self) -> None:
        for name, size in self.sizes.items():
            self.require(name, size != 0, "at least 1, or -1 for the rest")
        free = [name for name, size in self.sizes.items() if size == -1]
        if len(free) > 1:
            self.require(free[-1], False, "-1 on one axis only")

    @property
    def sizes(self) -> dict[str, int]:
        return {"replica": self.replica, "fsdp": self.fsdp, "tensor": self.tensor}


@dataclass(frozen=True)
class ComputeConfig(Section):
    """The way to compute an experiment; only `dtype` changes results by more than rounding."""

    prefix: ClassVar[str] = "compute."

    dtype: Literal["float32", "bfloat16"] = "float32"  # of products; parameters are float32
    # Numbers that a layer of Pythia keeps for each token for its backward pass (D more with
    # sequential residuals):
    # - "none": all.
    # - "dots": 8·D, the results of its first products.
    # - "attention": 5·D, inputs and output of attention; repeats the MLP's first products. With
    #   attention "xla" 4·D, because that is repeated too.
    # - "full": D, its input; repeats nearly everything.
    remat: Literal["none", "dots", "attention", "full"] = "none"
    attention: Literal["auto", "xla", "blocks", "cudnn", "splash"] = "auto"
    loss_chunk: int = positive(1024)  # tokens whose logits exist at one time
    accumulation_steps: int = positive(1)  # micro-batches in a step
    # Peak FLOP/s of one device, for MFU; None: that of its kind.
    peak_flops: float | None = bounded(None, low=1.0)
    # Folder of compiled programs. "auto": compiled/ in data.cache_dir, with a single process. None:
    # keeps no programs. Several processes need a folder that they share.
    compile_cache: str | None = "auto"
    mesh: MeshConfig = field(default_factory=MeshConfig)


@dataclass(frozen=True)
class ProbeConfig(Section):
    prefix: ClassVar[str] = "probe."

    every: int = positive(100)  # steps; also first and last
    tokens: int = positive(16_384)  # the same validation tokens in every probe
    ranks: tuple[int, ...] = ()  # of the truncation sweep; () takes powers of two up to D


@dataclass(frozen=True)
class CheckpointConfig(Section):
    prefix: ClassVar[str] = "checkpoint."

    every: int = positive(200)  # steps; the last step is always saved
    keep_last: int = positive(2)
    keep_every: int | None = positive(None)  # multiples of this are never deleted
    steps: tuple[int, ...] = ()  # also saved, and never deleted

    def is_due(self, step: int) -> bool:
        """Returns True if a step is to be saved; step 0 only if `steps` lists it."""
        return step in self.steps or (step > 0 and step % self.every == 0)


@dataclass(frozen=True)
class Config(Section):
    """A whole experiment."""

    seed: int = bounded(0, low=0)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def check(self) -> None:
        model, train, probe = self.model, self.train, self.probe
        warms_up = self.optimizer.warmup_steps <= train.steps
        self.optimizer.require("warmup_steps", warms_up, f"at most {train.steps=}")
        fits = train.sequence_length <= model.max_length
        train.require("sequence_length", fits, f"at most {model.max_length=}")
        check_divides(self, {k: v for k, v in self.compute.mesh.sizes.items() if v > 0})
        for rank in probe.ranks:
            allowed = f"ranks between 1 and {model.d_model=}"
            require(1 <= rank <= model.d_model, "probe.ranks", rank, allowed)
        has_a_window = probe.tokens >= train.sequence_length
        probe.require("tokens", has_a_window, f"at least {train.sequence_length=}")
        known_field, known = self.data.vocabulary
        model.require("vocab_size", model.vocab_size >= known, f"at least {known_field}={known}")

    def experiment(self) -> Self:
        """Returns the config with default `compute` but for the dtype; equal for one experiment."""
        return dataclasses.replace(self, compute=ComputeConfig(dtype=self.compute.dtype))

    @property
    def tokens_per_step(self) -> int:
        return self.train.batch_size * self.train.sequence_length

    @property
    def probe_ranks(self) -> tuple[int, ...]:
        """Ranks of the truncation sweep, ascending and distinct, ending with D."""
        d_model = self.model.d_model
        powers = tuple(2**i for i in range(d_model.bit_length()) if 2**i < d_model)
        return tuple(sorted({*(self.probe.ranks or powers), d_model}))


def check_divides(config: Config, mesh_sizes: dict[str, int]) -> None:
    """Raises `UserError` if the mesh does not divide a micro-batch or a dimension of the model.

    `mesh_sizes` has the devices along each axis of the mesh; a missing axis has 1.
    """
    model, train, compute = config.model, config.train, config.compute
    replica, fsdp, tensor = (mesh_sizes.get(axis, 1) for axis in ("replica", "fsdp", "tensor"))
    unit = compute.accumulation_steps * replica * fsdp
    train.require(
        "batch_size",
        train.batch_size % unit == 0,
        f"a multiple of {unit} (compute.accumulation_steps={compute.accumulation_steps} × "
        f"{replica * fsdp} devices along compute.mesh.replica and compute.mesh.fsdp), "
        f"such as {_nearest_multiples(train.batch_size, unit)}",
    )
    for name, size, axis, unit in (
        ("d_model", model.d_model, "fsdp", math.lcm(fsdp, model.n_heads)),
        ("n_heads", model.n_heads, "tensor", tensor),
        ("n_kv_heads", model.kv_heads, "tensor", tensor),
        ("d_ff", model.mlp_width, "tensor", tensor),
    ):
        n_devices, near = mesh_sizes.get(axis, 1), _nearest_multiples(size, unit)
        allowed = (
            f"a multiple of compute.mesh.{axis}={n_devices}, such as {near}; or set "
            f"compute.mesh.{axis}={math.gcd(size, n_devices)}"
        )
        require(size % n_devices == 0, f"model.{name}", size, allowed)
    multiple = math.lcm(model.vocab_multiple, tensor)
    model.require(
        "vocab_multiple",
        model.padded_vocab_size % tensor == 0,
        f"such that the {model.padded_vocab_size} rows of the vocabulary become a multiple of "
        f"compute.mesh.tensor={tensor}, such as {multiple} for "
        f"{_round_up(model.vocab_size, multiple)} rows; or set "
        f"compute.mesh.tensor={math.gcd(model.padded_vocab_size, tensor)}",
    )


def base() -> config_dict.ConfigDict:
    """Returns every field with its default, for a config file to change; has no other names."""
    return defaults(Config)


def parse(fields: config_dict.ConfigDict | dict[str, Any]) -> Config:
    """Returns the validated experiment; raises `UserError` naming the first wrong field."""
    plain = fields.to_dict() if isinstance(fields, config_dict.ConfigDict) else fields
    return build(Config, plain)


def to_dict(config: Any) -> dict[str, Any]:
    """Returns the fields of a config or section as nested plain values for JSON."""
    return dataclasses.asdict(config)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _nearest_multiples(value: int, unit: int) -> str:
    below = value // unit * unit
    return " or ".join(str(n) for n in (below, below + unit) if n > 0)
