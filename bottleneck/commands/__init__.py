"""The verbs of `python -m bottleneck`: one file each, flags only."""
