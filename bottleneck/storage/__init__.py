"""Files that are complete or absent, checksums, and folders that a killed command can resume.

A path may be on a disk or in a bucket (gs://). A damaged file is a `UserError` with its remedy.

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> from bottleneck import storage
>>> with TemporaryDirectory() as parent:
...     work = storage.Workspace(Path(parent, "study"), plan={"n": 5}, holds="a study")
...     with work.opened() as facts:
...         storage.write_arrays(work.folder / "values.npz", {"values": [3, 4]})
...         facts["seconds"] = 2
...     storage.read_arrays(work.folder / "values.npz")["values"]
array([3, 4])

`json_files` writes JSON with a checksum inside, `checksums` lists the hashes of other files, and
`folders` has paths, atomic writes and locks.
"""

from bottleneck.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "arrays": ["Arrays", "read_arrays", "write_arrays"],
        "checksums": [],
        "folders": [],
        "json_files": [],
        "workspace": ["Workspace"],
    },
)
