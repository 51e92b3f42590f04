"""Devices and processes: the mesh, TPU slices and chips, preemption, the store of programs.

Mesh axes: `replica` (copies of the parameters), `fsdp` (parameters and batch), `tensor` (heads, MLP
width and vocabulary).

>>> import jax
>>> from bottleneck import parallel
>>> from bottleneck.config import MeshConfig
>>> mesh = parallel.make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
>>> dict(mesh.shape)
{'replica': 1, 'fsdp': 1, 'tensor': 1}
>>> parallel.slice_of("v5e:4x4").hosts
4

Arrange devices with `make_mesh`, and place arrays on them with `partition_spec`, by `LOGICAL_AXES`.
Read the table of TPU slices with `slice_of` and `flags_of`; `CHIPS` is that of chips.
"""

from bottleneck.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "mesh": ["LOGICAL_AXES", "make_mesh", "partition_spec"],
        "slices": ["flags_of", "slice_of"],
        "chips": ["CHIPS", "Chip", "peak_flops"],
    },
)
