"""IDs as bare arrays, with the items of their rows in a file beside them: numpy, GRID, flat ids."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np

from semid_dataset import _files as files
from semid_dataset.errors import TableError
from semid_dataset.exports._common import (
    How,
    agreeing,
    load_arrays,
    member,
    npy_bytes,
    npz_bytes,
    read_beside,
    write_beside,
)
from semid_dataset.exports.numbers import flat_ids, unflatten_ids
from semid_dataset.table.table import SemanticIdTable

__all__ = ["read_flat", "read_npy", "read_pt", "write_flat", "write_npy", "write_pt"]


def write_npy(table: SemanticIdTable, path: Path, style: str, first: int) -> list[Path]:
    """Write codes (items, levels); return the files written."""
    return write_beside(table, path, [npy_bytes(table.codes_array)])


def read_npy(path: Path, how: How) -> SemanticIdTable:
    """Read codes (items, levels); raises TableError where the file holds none."""
    arrays = load_arrays(path)
    if "" not in arrays:
        raise TableError(f"'{path}' is an archive of arrays, no array.")
    return read_beside(path, arrays[""], how)


def write_pt(table: SemanticIdTable, path: Path, style: str, first: int) -> list[Path]:
    """Write a tensor (levels, items); return the files written."""
    import torch

    from semid_dataset.codec._threads import isolated

    buffer = io.BytesIO()
    with isolated():  # a fake tensor cannot be written
        torch.save(torch.from_numpy(np.ascontiguousarray(table.codes_array.T, np.int64)), buffer)
    return write_beside(table, path, [buffer.getvalue()])


def read_pt(path: Path, how: How) -> SemanticIdTable:
    """Read a tensor (levels, items); raises TableError where the file holds none."""
    import pickle

    import torch

    from semid_dataset.codec._threads import isolated

    try:
        with isolated():
            codes = torch.load(
                io.BytesIO(files.map_file(path, mmap=False, follow=True)[0]), map_location="cpu", weights_only=True
            )
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        # Torch's own words advise to execute the file.
        raise TableError(
            f"'{path}' cannot be read as a tensor ({type(error).__name__}). Nothing in it was executed. Write it with "
            "torch.save, one tensor (levels, items)."
        ) from None
    if not isinstance(codes, torch.Tensor) or codes.ndim != 2:
        raise TableError(f"'{path}' must hold a tensor (levels, items).")
    with isolated():
        array = codes.numpy().T
    return read_beside(path, array, how)


def write_flat(table: SemanticIdTable, path: Path, style: str, first: int) -> list[Path]:
    """Write ids of one vocabulary; return the files written."""
    sizes = table.codebook_sizes
    flat = flat_ids(table.codes_array, sizes, first=first)
    data = npz_bytes(ids=flat, sizes=np.array(sizes, np.int64), first=np.array(first))
    return write_beside(table, path, [data])


def read_flat(path: Path, how: How) -> SemanticIdTable:
    """Read ids of one vocabulary; raises TableError where the file holds none."""
    archive = load_arrays(path)
    sizes = agreeing(path, member(archive, "sizes", path).tolist(), how)
    flat = member(archive, "ids", path)
    return read_beside(
        path, unflatten_ids(flat, sizes, first=int(member(archive, "first", path))), replace(how, sizes=sizes)
    )
