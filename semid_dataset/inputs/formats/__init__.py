"""
The formats that embeddings are read from: a module each, the only reader of its format.

A new one is a class with the methods of `protocols.Format` and a line in `FORMATS`; other packages announce theirs as
entry points of the group `semid_dataset.formats`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from semid_dataset.errors import EmbeddingError
from semid_dataset.inputs._file import ForwardFile, something_else
from semid_dataset.inputs.discover import COMPRESSED
from semid_dataset.protocols import Format, Partition
from semid_dataset.registry import Registry

__all__ = ["FORMATS", "format_of", "load_arrays", "whole_file"]

FORMATS = Registry(
    "format",
    "semid_dataset.formats",
    {
        name: f"semid_dataset.inputs.formats.{place}"
        for name, place in {
            "parquet": "parquet:Parquet",
            "jsonl": "jsonl:JsonLines",
            "pickle": "pickle:Pickle",
            "npy": "npy:Npy",
            "npz": "npy:Npz",
            "safetensors": "safetensors:Safetensors",
            "arrow": "arrow:ArrowFile",
            "text": "text:Text",
            "rows": "_rows:SpooledRows",
        }.items()
    },
)


def format_of(path: Path, expected: str = "") -> Format:
    """
    Return the reader of a file: by its first bytes, else the one that is expected, else by its ending.

    Raises:
        EmbeddingError: it cannot be opened, is something else (which is named), or is of no known kind.
    """
    with ForwardFile(path, hashed=False) as file:
        head = file.head()
    foreign = something_else(head, path)
    if foreign is not None:
        raise EmbeddingError(foreign)
    # One after the other: what comes after the one that is found is not imported.
    found: Format | None = next((form for form in _ours() if _begins(form, head)), None)
    if found is None:
        others = (form for form in FORMATS.others() if path.name.endswith(form.suffixes) or _begins(form, head))
        found = next(others, None)
    if found is None and not head and expected != "jsonl" and not path.name.endswith((".jsonl", ".ndjson")):
        raise EmbeddingError(f"'{path}' is empty: 0 bytes. Copy or write it again.")
    if found is None and expected:
        found = FORMATS.get(expected)
    if found is None:
        ending = Path(COMPRESSED.sub("", path.name)).suffix
        found = next((form for form in _ours() if ending in form.suffixes), None)
    if found is None:
        known = ", ".join(ending for form in _ours() for ending in form.suffixes)
        raise EmbeddingError(f"'{path}' is of no kind that embeddings are read from. There are {known}.")
    return found


def _ours() -> Iterator[Format]:
    return map(FORMATS.get, FORMATS.ours)


def _begins(form: Format, head: bytes) -> bool:
    return bool(form.starts) and re.match(form.starts, head, re.DOTALL) is not None


def whole_file(path: Path, expected: str = "") -> Partition:
    """Return all of a file as one partition, in the format that it really has; raises as `format_of`."""
    return Partition(format_of(path, expected).name, str(path))


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """
    Return the arrays of a file by name; the one of an .npy has the name "".

    Raises:
        EmbeddingError: it holds no arrays, is damaged, or holds Python objects.
    """
    form: Any = format_of(path, "npy")
    if not hasattr(form, "arrays"):
        raise EmbeddingError(f"'{path}' is a file of the format {form.name}, which holds no arrays.")
    with ForwardFile(path, hashed=False, seekable=True) as file, form.arrays(file) as arrays:
        return {name: array.all() for name, array in arrays.items()}
