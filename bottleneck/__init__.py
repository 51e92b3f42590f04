"""Train small language models whose head has a chosen rank, and measure what the rank costs.

Imports nothing: an array library has the same import name. Libraries that look for that one
(pandas, xarray) import this module and read `__version__`.
"""

__version__ = "0.1.0"
