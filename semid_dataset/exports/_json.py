"""The original's `semantic_id_dict.json`."""

from pathlib import Path

import numpy as np

from semid_dataset import _files as files
from semid_dataset.exports._common import How, read_bytes, table_of
from semid_dataset.format.id_json import parse_id_json
from semid_dataset.table.table import SemanticIdTable

__all__ = ["read_json", "write_json"]


def write_json(table: SemanticIdTable, path: Path, style: str, first: int) -> list[Path]:
    """Write {item: codes}; return the files written."""
    files.replace_file(path, table.json_chunks())
    return [path]


def read_json(path: Path, how: How) -> SemanticIdTable:
    """Read {item: codes}; raises TableError where the file holds none."""
    items, codes = parse_id_json(read_bytes(path), str(path))
    return table_of(items, codes if len(codes) else np.empty((0, 4), np.uint8), path, how)
