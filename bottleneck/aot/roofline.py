"""The minimum time of a train step on given devices, and the MFU that this allows.

Four things take time: arithmetic, HBM, and the networks inside a slice (ICI) and between slices
(DCN). Each is assumed to run at its peak, all at once, so a real step takes longer. FLOPs and bytes
are per device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bottleneck.aot.hlo import Collective
from bottleneck.config import Config
from bottleneck.model.accounting import count_parameters, flops_per_token, layer_matrix_parameters
from bottleneck.parallel.chips import Chip


@dataclass(frozen=True)
class Roofline:
    """The minimum that a step needs on one device, and the time of each part at its peak."""

    model_flops: float  # as in MFU: 3 × forward, causal attention halved
    hardware_flops: float  # with recomputation
    hbm_bytes: float
    ici_bytes: float
    dcn_bytes: float
    seconds: dict[str, float]  # by resource, as in `binds`
    peak_flops: float

    @property
    def step_seconds(self) -> float:
        return max(self.seconds.values())

    @property
    def binds(self) -> str:
        """The slowest resource: "compute", "HBM", "ICI" or "DCN"."""
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def mfu_ceiling(self) -> float:
        return self.model_flops / self.peak_flops / self.step_seconds


def step_roofline(
    config: Config,
    mesh_shape: Mapping[str, int],
    chip: Chip,
    collectives: Sequence[Collective],
    *,
    flash_attention: bool,
) -> Roofline:
    """Returns the roofline of a train step.

    Args:
        mesh_shape: devices along "replica", "fsdp" and "tensor".
        collectives: of the compiled step.
        flash_attention: the step's kernel skips the masked half of the scores, and recomputes the
            other half in its backward pass.
    """
    tokens = config.tokens_per_step / math.prod(mesh_shape.values())
    flops = flops_per_token(config.model, config.train.sequence_length)
    hardware_flops = tokens * _hardware_flops_per_token(config, mesh_shape, flash_attention)
    hbm_bytes = hbm_traffic(config, mesh_shape)
    ici_bytes = sum(each.count * each.ici_bytes for each in collectives)
    dcn_bytes = sum(each.count * each.dcn_bytes for each in collectives)
    return Roofline(
        model_flops=tokens * flops.training(causal_halved=True),
        hardware_flops=hardware_flops,
        hbm_bytes=hbm_bytes,
        ici_bytes=ici_bytes,
        dcn_bytes=dcn_bytes,
        seconds={
            "compute": hardware_flops / chip.peak_flops,
            "HBM": hbm_bytes / chip.hbm_bandwidth,
            "ICI": ici_bytes / chip.ici_bandwidth,
            "DCN": dcn_bytes / chip.dcn_bandwidth,
        },
        peak_flops=chip.peak_flops,
    )


def _hardware_flops_per_token(
    config: Config, mesh_shape: Mapping[str, int], flash_attention: bool
) -> float:
    """Counts forward, backward, and what remat, the loss and flash attention recompute.

    Leaves out the products by which a TPU moves entries to rotate them, 1 % at 160M.
    """
    flops = flops_per_token(config.model, config.train.sequence_length)
    remat = config.compute.remat
    # Flash attention has 2 products of the size of the scores forward, whose result can be kept,
    # and 3 + 4 in the two kernels of its backward pass.
    forward = 0.5 if flash_attention else 1.0
    keeps_attention = remat == "none" or (remat == "attention" and flash_attention)
    attention = forward * (1 if keeps_attention else 2) + (0.5 * 7 / 2 if flash_attention else 2.0)
    head = 2 + _head_passes(config, mesh_shape)
    layers = 3 + _share_computed_again(config)
    return layers * flops.layers + attention * flops.attention + head * flops.head


def _share_computed_again(config: Config) -> float:
    """Returns the fraction of a layer's matrix products that its backward pass repeats.

    A product whose result no other product reads is never repeated: the MLP's last, and with a
    parallel residual that of attention.
    """
    model, remat = config.model, config.compute.remat
    if remat not in ("attention", "full"):
        return 0.0
    again = (2 if model.mlp == "swiglu" else 1) * model.d_model * model.mlp_width
    if remat == "full":
        again += model.d_model * (model.d_model + 2 * model.kv_heads * model.head_size)
        again += 0 if model.parallel_residual else model.d_model**2
    return again / layer_matrix_parameters(model)


def _head_passes(config: Config, mesh_shape: Mapping[str, int]) -> int:
    """Returns how often logits are computed: twice if a full head is split by column."""
    return 2 if config.model.head_rank is None and mesh_shape["fsdp"] > 1 else 1


def hbm_traffic(config: Config, mesh_shape: Mapping[str, int]) -> float:
    """Returns the bytes that must pass through one device's HBM in a step.

    - Weights: read in each pass over the layers, by every micro-batch.
    - Gradients: summed in float32. AdamW: reads and writes parameters and both moments.
    - Inputs of layers: kept for the backward pass.
    - Logits: written and read in each pass; their gradient is written, and read by two products.
    - The sum over the loss's chunks: read and written with each chunk. It is the gradient of the
      head, or of the hidden states if the head is split by column.

    Everything inside a layer is left out: at best it stays on the chip.
    """
    model, compute = config.model, config.compute
    n_micro = compute.accumulation_steps
    width = 2 if compute.dtype == "bfloat16" else 4
    tensor, shards = mesh_shape["tensor"], mesh_shape["fsdp"] * mesh_shape["tensor"]
    tokens = config.tokens_per_step / (mesh_shape["replica"] * mesh_shape["fsdp"])
    own_parameters = count_parameters(model).total / shards
    passes = 2 + _share_computed_again(config)
    layer_weights = model.n_layers * layer_matrix_parameters(model) / tensor
    weights = n_micro * passes * width * layer_weights
    gradients = 4 * own_parameters * (2 * n_micro - 1)
    optimizer = 4 * own_parameters * 7  # gradient, and parameters and two moments in and out
    kept = 2 * width * tokens * model.n_layers * model.d_model
    rows, head_passes = model.padded_vocab_size / tensor, _head_passes(config, mesh_shape)
    logits = tokens * rows * (8 * head_passes + 3 * width)
    chunks = max(n_micro, tokens / compute.loss_chunk)
    if head_passes == 2:
        added_up = 8 * chunks * (tokens / n_micro) * model.d_model
    else:
        added_up = 8 * chunks * rows * (model.head_rank or model.d_model)
    return weights + gradients + optimizer + kept + logits + added_up
