"""Operations of the model that depend on the platform, which nothing outside this package asks for.

Each is one function, with a `reference` in its module that does the same by the formula:

    attention   causal_attention
    gelu        exact_gelu
    linear      projections (of linear layers that read the same input)
    loss        algorithm (of the cross-entropy of one device's tokens)
    remat       scan_layers
    rotary      rotate

`cpu.computed_once` is the identity, and a fence for the compiler. `device` says which platform a
program is traced for.
"""
