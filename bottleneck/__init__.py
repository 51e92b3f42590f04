"""Train small language models whose head has a chosen rank, and measure what the rank costs.

Nothing heavy is imported here: an array library on the package index shares this import name,
and libraries that look for that one (pandas, xarray) import this module and read `__version__`.
"""

__version__ = "0.1.0"
