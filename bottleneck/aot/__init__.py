"""Programs compiled ahead of time for TPU slices you do not have: memory, collectives, roofline.

Compile the programs of a run with `rehearse`, which needs libtpu; print the result with `show`.
With `as_json` it becomes plain values, and `advice` lists changes that make a program fit.

    rehearsal = aot.rehearse(config, "v5e:4x4")
    rehearsal.fits, rehearsal.programs["train step"].memory.peak, rehearsal.roofline.mfu_ceiling

The roofline of a step alone needs no compiler:

>>> from bottleneck import aot
>>> from bottleneck.config import Config
>>> from bottleneck.parallel.chips import CHIPS
>>> mesh = {"replica": 1, "fsdp": 4, "tensor": 1}
>>> limits = aot.step_roofline(Config(), mesh, CHIPS["v5e"], [], flash_attention=False)
>>> limits.binds
'HBM'

`collectives` and `estimated_cycles` read the text of any HLO program.
"""

from bottleneck.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "compile_check": ["Buffer", "Memory", "ProgramReport", "Rehearsal", "rehearse"],
        "report": ["advice", "as_json", "show"],
        "roofline": ["Roofline", "hbm_traffic", "step_roofline"],
        "hlo": ["Collective", "Shape", "collectives", "estimated_cycles"],
    },
)
