"""
Ids of items as columns of fixed width, to be sorted, searched and written down by the million: int64, or UTF-8.

Texts are bytes of numpy ("S"), as wide as the longest of them. Their order is that of code points, as Python sorts
texts. Where one feature's ids are integers and another's are texts, all become texts.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import EmbeddingError
from semid_dataset.inputs._items import canonical_int
from semid_dataset.objects import Items

__all__ = [
    "Keys",
    "LongNameError",
    "as_keys",
    "as_texts",
    "first_of_each",
    "hash_items",
    "items_of",
    "joined",
    "listed",
    "stored",
    "taken",
]

Keys = NDArray[Any]  # (n,) int64 or bytes
LONGEST = 256  # bytes of a text: every one takes as much as the longest


class LongNameError(EmbeddingError):
    """A text cannot stand in a column of fixed width."""


def as_keys(items: Items | Iterable[str], where: str = "the items") -> Keys:
    """
    Return items as a column: integers as they are, texts as UTF-8.

    Raises:
        LongNameError: a text is longer than 256 bytes, or ends with a zero byte, which numpy would drop.
    """
    if isinstance(items, np.ndarray):
        return items
    encoded = [item.encode("utf-8", "surrogatepass") for item in items]
    wrong = next((text for text in encoded if len(text) > LONGEST or text.endswith(b"\0")), None)
    if wrong is not None:
        raise LongNameError(
            f"{where}: item {wrong.decode('utf-8', 'replace')!r:.80} has {len(wrong)} bytes. Items whose ids are "
            f"longer than {LONGEST} bytes, or end with a zero byte, are read into memory: raise memory_limit "
            "(SEMID_MEMORY_LIMIT, --memory-limit) beyond the size of the vectors."
        )
    return np.array(encoded, "S") if encoded else np.empty(0, "S1")


def as_texts(keys: Keys) -> Keys:
    """Return a column of texts: integers in their decimal spelling."""
    return keys.astype("S") if keys.dtype.kind == "i" else keys


def joined(columns: Sequence[Keys]) -> Keys:
    """Return columns one after the other; all as texts where one is of texts."""
    if any(column.dtype.kind == "S" for column in columns):
        return np.concatenate([as_texts(column) for column in columns])
    return np.concatenate([np.empty(0, np.int64), *columns])


def items_of(keys: Keys) -> Items:
    """Return a column as the rest of the package takes items: int64, or a list of texts."""
    return [key.decode("utf-8", "surrogatepass") for key in keys.tolist()] if keys.dtype.kind == "S" else keys


def listed(keys: Keys) -> list[int | str]:
    """Return a column as JSON types."""
    found = items_of(keys)
    return list(found) if isinstance(found, list) else list(found.tolist())


def first_of_each(keys: Keys) -> tuple[Keys, NDArray[np.int64]]:
    """Return the distinct keys, ascending, and where each stands first."""
    if bool((keys[1:] > keys[:-1]).all()):
        return keys, np.arange(len(keys))
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.ones(len(keys), bool)
    first[1:] = keys[1:] != keys[:-1]
    return (keys, order) if first.all() else (keys[first], order[first])


def stored(keys: Keys, name: str = "ids") -> dict[str, NDArray[Any]]:
    """Return a column as arrays of a file; `taken` reads them."""
    if keys.dtype.kind != "S":
        return {name: keys}
    return {f"{name}.text": np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), keys.dtype.itemsize)}


def taken(arrays: Mapping[str, NDArray[Any]], name: str = "ids") -> Keys:
    """Return a column that `stored` turned into arrays; it may be read-only."""
    found = arrays.get(f"{name}.text")
    if found is None:
        return arrays[name]
    return np.ascontiguousarray(found).reshape(-1).view(f"S{found.shape[1]}")


def hash_items(items: Items | Keys, seed: int) -> NDArray[np.uint64]:
    """
    Return 64 bits for every id: other ids have other bits, and which are the smallest is as if drawn at random.

    An integer and its decimal spelling have the same bits.

    Source: the finalizer of SplitMix64, Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    start = int.from_bytes(hashlib.sha256(f"sample {seed}".encode()).digest()[:8], "little")
    mixed = _numbers(items).view(np.uint64) + np.uint64(start)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def _numbers(items: Items | Keys) -> NDArray[np.int64]:
    if isinstance(items, np.ndarray) and items.dtype.kind != "S":
        return items.astype(np.int64, copy=False)
    texts = items_of(items) if isinstance(items, np.ndarray) else items
    return np.fromiter(map(_number, texts), np.int64, len(texts))


def _number(text: Any) -> int:
    number = canonical_int(text)
    if number is not None:
        return number
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
