"""The making of a token cache: two passes over the corpus, one for the tokenizer, one for the tokens."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from bottleneck.config import DataConfig
from bottleneck.data import tokenizer as bpe
from bottleneck.data.corpus import Corpus, heldout_draw
from bottleneck.data.documents import Document
from bottleneck.data.manifest import TOKENIZER, UNIGRAM_COUNTS, Manifest, SplitInfo
from bottleneck.data.shards import FileInfo, ShardWriter, token_dtype
from bottleneck.errors import UserError

# Characters given to the tokenizer at a time, for each core: enough to keep it busy, few enough for
# encodings, which take a hundred times the memory of their ids.
_BATCH_CHARACTERS = 2**18

_SECONDS_BETWEEN_LINES = 30  # of progress where there is no terminal


def write_cache(
    folder: Path, config: DataConfig, corpus: Corpus, made_of: dict[str, Any]
) -> None:
    """Fills a folder with the tokens of a corpus; the manifest is written last.

    Raises:
      UserError: where the corpus cannot be read, or one of its splits would be empty.
      OSError: where the folder cannot be written.
    """
    with _progress(corpus) as show:
        show("training the tokenizer", 0)
        tokenizer = _tokenizer(config, corpus)
    ...
