"""A table as a frame of other libraries, and as a page of a notebook."""

import importlib
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from semid_dataset.errors import ConfigError

if TYPE_CHECKING:
    from semid_dataset.table.table import SemanticIdTable

__all__ = ["imported", "table_html", "to_arrow", "to_pandas", "to_polars"]

SHOWN_ITEMS = 5  # in a notebook


def imported(name: str, what: str, extra: str = "") -> Any:
    """
    Return a module that only some need.

    Raises:
        ConfigError: it is not installed; `what` needs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        how = f'"semid_dataset[{extra}]"' if extra else name
        raise ConfigError(f"{what} needs {name}: pip install {how}.") from None


def to_arrow(table: "SemanticIdTable") -> Any:
    """Return a `pyarrow.Table` of item_id (int64 or string) and codes (a list of uint8 or uint16 each)."""
    arrow = imported("pyarrow", "table.to_arrow()", "parquet")
    keys, codes = table.keys_array, table.codes_array
    items = arrow.array(keys, arrow.int64() if isinstance(keys, np.ndarray) else arrow.string())
    flat = arrow.array(np.ascontiguousarray(codes).reshape(-1))
    return arrow.table({"item_id": items, "codes": arrow.FixedSizeListArray.from_arrays(flat, table.levels)})


def to_pandas(table: "SemanticIdTable") -> Any:
    """Return a `pandas.DataFrame` of item_id and codes, an array each."""
    imported("pandas", "table.to_pandas()")
    return to_arrow(table).to_pandas()


def to_polars(table: "SemanticIdTable") -> Any:
    """Return a `polars.DataFrame` of item_id and codes, an array each."""
    return imported("polars", "table.to_polars()").from_arrow(to_arrow(table))


def table_html(table: "SemanticIdTable") -> str:
    """Return what a notebook shows: what the table is, its first items, and its quality."""
    head = f"SemanticIdTable: {len(table):,} items, {table.levels} levels, {table.status}"
    keys = [str(key) for key in table.keys_array[:SHOWN_ITEMS]]
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{" ".join(map(str, row))}</td></tr>'
        for key, row in zip(keys, table.codes_array[:SHOWN_ITEMS].tolist(), strict=True)
    )
    more = f"<p>and {len(table) - len(keys):,} more</p>" if len(table) > len(keys) else ""
    figures = table.quality._repr_html_() if table.quality else ""
    return (
        f"<p>{escape(head)}<br>{escape(str(table.path or 'in memory'))}</p>"
        f"<table><thead><tr><th>item</th><th>ID</th></tr></thead><tbody>{rows}</tbody></table>{more}{figures}"
    )
