"""IDs as tokens of a language model: an index of items, the list for `add_tokens`, the numbers that a tokenizer has."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset import _files as files
from semid_dataset.errors import TableError
from semid_dataset.exports._common import BLOCK_ITEMS, How, read_bytes
from semid_dataset.exports.numbers import sizes_of
from semid_dataset.objects import as_choice, shown
from semid_dataset.table.table import SemanticIdTable

__all__ = ["STYLES", "TOKEN", "read_index", "spelling", "token_ids_of", "token_list", "write_index", "write_tokens"]

STYLES: dict[str, Callable[[int, int], str]] = {
    "letter": lambda level, code: f"<{_letter(level)}_{code}>",
    "s_letter": lambda level, code: f"<s_{_letter(level)}_{code}>",
    "item": lambda level, code: f"<item_L{level}_C{code}>",
}
LETTERS = 26
TOKEN = re.compile(r"<(?:s_)?([a-z])_([0-9]{1,5})>|<item_L([0-9]{1,2})_C([0-9]{1,5})>")  # of any style


def _letter(level: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[level]  # there are 16 levels at most


def token_list(sizes: Sequence[int], style: str = "letter") -> list[str]:
    """
    Return the tokens of all codes of all levels, level by level: what `tokenizer.add_tokens` must be given.

    All of them, not only those in use today: an item that comes later may have any code, and a token
    added later gets a row of the embedding that nobody trained.

    Args:
        sizes: codes of each level.
        style: "letter" `<a_12>`, "s_letter" `<s_a_12>`, "item" `<item_L0_C12>`. The last has capitals: under a
            tokenizer that lower-cases no text ever holds such a token.
    """
    spell, sizes = spelling(style), sizes_of(sizes)
    if len(sizes) > LETTERS:
        raise TableError(f"Tokens are spelled for {LETTERS} levels at most, not {len(sizes)}.")
    return [spell(level, code) for level, size in enumerate(sizes) for code in range(size)]


def spelling(style: str) -> Callable[[int, int], str]:
    """Return what spells the token of (level, code) in a style; raises ConfigError where there is no such style."""
    return STYLES[as_choice(style, STYLES, "style")]


def _index_chunks(table: SemanticIdTable, style: str) -> Iterator[bytes]:
    """Yield `{"item": ["<a_1>", "<b_2>"], ...}` in blocks, in the order of the table."""
    spell = spelling(style)
    sizes = table.codes_array.max(axis=0, initial=0).tolist()
    words = [[json.dumps(spell(level, code)) for code in range(size + 1)] for level, size in enumerate(sizes)]
    items = iter(table)
    opening = "{"
    for start in range(0, len(table), BLOCK_ITEMS):
        rows = table.codes_array[start : start + BLOCK_ITEMS].tolist()
        lines = [
            f"{json.dumps(str(item))}:[{','.join(words[level][code] for level, code in enumerate(row))}]"
            for row, item in zip(rows, items, strict=False)
        ]
        yield (opening + ",".join(lines)).encode()
        opening = ","
    yield b"}" if opening == "," else b"{}"


def _parse_index(data: bytes, where: str, how: How) -> SemanticIdTable:
    """Read an index of tokens in any of the styles."""
    try:
        index = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TableError(f"'{where}' is no valid JSON: {error}.") from None
    if not isinstance(index, dict):
        raise TableError(f"'{where}' must hold an object of token lists, found a {type(index).__name__}.")
    ids: dict[str, list[int]] = {}
    for item, tokens in index.items():
        codes = []
        for level, token in enumerate(tokens if isinstance(tokens, list) else [tokens]):
            match = TOKEN.fullmatch(token) if isinstance(token, str) else None
            found = -1 if match is None else ord(match[1]) - ord("a") if match[1] else int(match[3])
            if match is None or found != level:
                raise TableError(f"'{where}', item {item!r:.80}: {token!r:.80} is no token of level {level}.")
            codes.append(int(match[2] or match[4]))
        ids[item] = codes
    return SemanticIdTable.from_mapping(ids, reason=f"read from {where}", codebook_sizes=how.sizes)


def write_index(table: SemanticIdTable, path: Path, style: str, first: int) -> list[Path]:
    """Write {item: tokens}; return the files written."""
    files.replace_file(path, _index_chunks(table, style))
    return [path]


def read_index(path: Path, how: How) -> SemanticIdTable:
    """Read {item: tokens}; raises TableError where the file holds none."""
    return _parse_index(read_bytes(path), str(path), how)


def write_tokens(table: SemanticIdTable, path: Path, style: str, first: int) -> list[Path]:
    """Write the tokens of all codes; return the files written."""
    tokens = token_list(table.codebook_sizes, style)
    files.replace_file(path, [json.dumps(tokens, separators=(",", ":")).encode()])
    return [path]


def token_ids_of(tokenizer: Any, sizes: Sequence[int], style: str = "letter") -> list[NDArray[np.int64]]:
    """
    Return the number that a tokenizer has for every code: one array (codes,) a level.

    Args:
        tokenizer: of transformers, after `tokenizer.add_tokens(token_list(sizes, style))`.
        sizes: codes of each level.

    Raises:
        TableError: the tokenizer lacks a token; it names the first.
    """
    spell = spelling(style)
    sizes = sizes_of(sizes)
    if not callable(getattr(tokenizer, "convert_tokens_to_ids", None)):
        raise TableError(f"A tokenizer of transformers has convert_tokens_to_ids; {shown(tokenizer)} has not.")
    unknown = getattr(tokenizer, "unk_token_id", None)
    split = getattr(tokenizer, "tokenize", None)
    found: list[NDArray[np.int64]] = []
    for level, size in enumerate(sizes):
        tokens = [spell(level, code) for code in range(size)]
        numbers = tokenizer.convert_tokens_to_ids(tokens)
        for token, number in zip(tokens, numbers, strict=True):
            if number is None or number == unknown:
                if style == "item" and tokenizer.convert_tokens_to_ids([token.lower()])[0] not in {None, unknown}:
                    raise TableError(LOWERED.format(token=token, found=token.lower()))
                raise TableError(
                    f"The tokenizer has no token {token}. Call tokenizer.add_tokens(token_list(table.codebook_sizes)), "
                    "the full list, then model.resize_token_embeddings(len(tokenizer))."
                )
        if tokens and callable(split) and tokens[0] not in (pieces := list(split(tokens[0]))):
            if tokens[0].lower() in pieces:
                raise TableError(LOWERED.format(token=tokens[0], found=tokens[0].lower()))
            raise TableError(
                f"The tokenizer knows {tokens[0]} and yet reads it as {pieces[:8]}: what a model is trained on has no "
                "such token. Add the tokens with tokenizer.add_tokens, to the tokenizer that the texts go through."
            )
        found.append(np.array(numbers, np.int64))
    return found


LOWERED = (
    "The tokenizer lower-cases: {token} becomes {found}, and no text ever holds the token. Export the style 'letter' "
    "or 's_letter', which have no capitals, or add the tokens as AddedToken(token, normalized=False)."
)
