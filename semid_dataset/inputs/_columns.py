"""
Which column, key or array of a file holds the items, and which the vectors.

Names decide, not types: a column of texts beside the vectors may be titles, and titles taken for ids are keys that
nobody will ever look up. One list of names serves every format; who has others says so.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from semid_dataset._messages import tell
from semid_dataset.errors import EmbeddingError

__all__ = [
    "ITEM_NAMES",
    "ROWS",
    "VECTOR_NAMES",
    "Column",
    "chosen",
    "listed",
    "named",
    "no_items",
    "plain_name",
    "refuse_columns",
]

# In this order where a file has several: the particular before the general. Case, "_", "-" and blanks do not count.
ITEM_NAMES = (
    "anonymous_cid", "creative_id", "item_id", "item_ids", "parent_asin", "asin", "iid", "sku", "sku_id", "product_id",
    "goods_id", "article_id", "news_id", "video_id", "photo_id", "note_id", "movie_id", "book_id", "track_id",
    "song_id", "business_id", "gmap_id", "poi_id", "doc_id", "ad_id", "items", "item", "ids", "id", "keys", "key", "pk",
)  # fmt: skip
VECTOR_NAMES = (
    "emb", "embedding", "embeddings", "embs", "vector", "vectors", "vec", "feature", "features", "feat", "x",
)  # fmt: skip
VAGUE = ("feature", "features", "feat", "x")  # of a column of vectors only where it is one
INDEX = "__index_level_0__"  # what pandas calls an index without a name
LEVEL = re.compile(r"__index_level_[0-9]+__")  # and levels of one that has several
ROWS = "rows"  # in place of a column of items: they are the numbers of the rows
SHOWN = 24  # columns that a message lists, at most


@dataclass(frozen=True)
class Column:
    """A column, key or array: name, type in words, whether it holds vectors, and whether those are of floats."""

    name: str
    kind: str
    vectors: bool
    floats: bool = False


def named(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    """Return the name that stands first in the list of those wanted; None where there is none."""
    there: dict[str, str] = {}
    for name in names:
        there.setdefault(plain_name(name), name)
    return next((there[plain_name(name)] for name in wanted if plain_name(name) in there), None)


def chosen(
    columns: Sequence[Column], path: Path, items: str = "", vectors: str = "", *, own: bool = True
) -> tuple[str | None, str]:
    """
    Return the names of the column of items (None for `ROWS`) and the column of vectors.

    Args:
        columns: what the file holds.
        items, vectors: the names that a person gave; "" to go by the lists.
        own: whether a person can give names: not so for the files of a data directory.

    Raises:
        EmbeddingError: there is no such column, or more than one it could be; the columns are listed.
    """
    taken = _vectors_column(columns, path, vectors, own)
    others = [column.name for column in columns if column.name != taken]
    if items == ROWS:
        return None, taken
    if items:
        if items not in others:
            raise EmbeddingError(
                f"'{path}' has no column {items!r} for the items beside the vectors in {taken!r}, and there is no "
                f"such file. There is: {listed(columns)}."
            )
        return items, taken
    folders = [folder.partition("=")[0] for folder in path.parent.parts if "=" in folder]
    key = named(others + folders, ITEM_NAMES)
    if key in others:
        return key, taken
    if key is not None:
        raise EmbeddingError(
            f"'{path}': the items stand in the names of folders ({key}=...), which are not read. Nothing was read. "
            f"Write the files with a column {key}, not partitioned by it."
        )
    index = [name for name in others if LEVEL.fullmatch(name)]
    if len(index) == 1:
        tell("index_as_items", path=path)
        return index[0], taken
    raise no_items(path, columns, own)


def no_items(path: Path, columns: Sequence[Column], own: bool) -> EmbeddingError:
    """Return the error of a file without a column that is named as items are."""
    there = f"There is: {listed(columns)}. " if columns else ""
    if not own:
        return EmbeddingError(
            f"'{path}' has no column that is named as items are: {', '.join(ITEM_NAMES[:6])} and others "
            f"(docs/inputs.md). {there}Rename the one that holds them."
        )
    column = "If one of them holds the items, name it: --items COLUMN. Or name " if len(columns) > 1 else "Name "
    return EmbeddingError(
        f"'{path}' holds vectors but no items: nothing in it is named as items are ({', '.join(ITEM_NAMES[:6])}, id "
        f"and others, docs/inputs.md). {there}{column}the file that has the item of every row (--ids ids.txt, one a "
        "line), or say --items rows to number them from 0."
    )


def refuse_columns(path: Path, items: str, vectors: str) -> None:
    """
    Make sure that no column is named of a file that has none.

    Raises:
        EmbeddingError: one is.
    """
    if items not in {"", ROWS}:
        raise EmbeddingError(
            f"'{path}' has no columns, and there is no file '{items}'. Name the file that has the item of every row "
            "(--ids ids.txt, one a line), or say --items rows to number them from 0."
        )
    if vectors:
        raise EmbeddingError(f"'{path}' has no columns, so there is none called '{vectors}'. Leave --vectors out.")


def listed(columns: Sequence[Column]) -> str:
    """Return names and types for a message."""
    more = f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else ""
    return ", ".join(f"{column.name} ({column.kind})" for column in columns[:SHOWN]) + more or "nothing"


def _vectors_column(columns: Sequence[Column], path: Path, vectors: str, own: bool) -> str:
    by_name = {column.name: column for column in columns}
    how = "name it: --vectors COLUMN" if own else f"name it {VECTOR_NAMES[0]}"
    if vectors:
        if vectors not in by_name:
            raise EmbeddingError(f"'{path}' has no column {vectors!r}. There is: {listed(columns)}.")
        if not by_name[vectors].vectors:
            raise EmbeddingError(_no_vectors(path, by_name[vectors]))
        return vectors
    name = named([one.name for one in columns if one.vectors or plain_name(one.name) not in VAGUE], VECTOR_NAMES)
    if name is not None:
        if not by_name[name].vectors:
            raise EmbeddingError(_no_vectors(path, by_name[name]) + f" If another column holds the vectors, {how}.")
        return name
    lists = [column.name for column in columns if column.floats]
    if len(lists) == 1:  # of floats: lists of integers may be codes, or what a user bought
        return lists[0]
    raise EmbeddingError(
        f"'{path}' must have one column of lists of numbers, or one that is named as vectors are "
        f"({', '.join(VECTOR_NAMES[:6])}). There is: {listed(columns)}. If one of them holds the vectors, {how}."
    )


def _no_vectors(path: Path, column: Column) -> str:
    return f"'{path}' has vectors of type {column.kind} in {column.name}; wanted: lists of numbers."


def plain_name(name: str) -> str:
    """Return a name without what does not count in it."""
    return name.casefold().replace("_", "").replace("-", "").replace(" ", "")
