"""The token cache: a corpus that was tokenised once, as memory-mapped shards with a manifest.

A cache appears under its name only when it is whole, is recognised by its corpus and tokenizer, and
is refused when it does not match its manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from bottleneck.data import tokenizer as tokenizers_
