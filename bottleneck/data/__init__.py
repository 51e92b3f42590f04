"""Text to batches: corpus, tokenizer, token cache, batches. Nothing here touches an accelerator.

B: sequences in a batch; L: tokens in a sequence; V: tokens of the vocabulary.

>>> from tempfile import TemporaryDirectory
>>> from bottleneck import data
>>> from bottleneck.config import DataConfig
>>> corpus = {"corpus": "known_rank", "language_tokens": 8, "language_rank": 2}
>>> with TemporaryDirectory() as folder:
...     cache = data.prepare(DataConfig(**corpus, language_documents=200, cache_dir=folder))
...     batches = data.Batches(cache, batch_size=4, sequence_length=16, seed=0)
...     validation = data.validation_windows(cache, n_tokens=32, sequence_length=16)
...     batches.batch(step=7)["inputs"].shape, validation["targets"].shape
((4, 16), (2, 16))

`open_corpus` reads documents from files, TFDS or the standard library. `prepare` tokenizes them
once, into a `TokenCache`. `make_language` draws a text of known rank:

>>> language = data.make_language(n_tokens=8, rank=2, seed=0)
>>> print(f"{language.entropy_rate:.2f} nats per token at best")
1.61 nats per token at best
"""

from bottleneck.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "corpus": ["Corpus", "Fingerprint", "open_corpus"],
        "documents": ["Document", "read_documents"],
        "known_rank": ["Language", "make_language"],
        "tokenizer": [],
        "tokens": ["TokenCache", "open_cache", "prepare"],
        "shards": ["TokenSequence"],
        "batches": ["Batches", "validation_windows"],
    },
)
