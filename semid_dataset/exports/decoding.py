"""Constrained decoding with transformers: only IDs of real items come out."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import ConfigError, TableError
from semid_dataset.exports.trie import PrefixTrie

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SemanticIdLogitsProcessor", "prefix_allowed_tokens_fn"]


class _Decoding:
    """What both ways of constraining share: from token numbers to what may follow."""

    def __init__(
        self,
        trie: PrefixTrie,
        token_ids: Sequence[NDArray[Any]],
        prompt_length: int | None,
        end: int | None,
        *,
        rows_apart: bool = False,
    ) -> None:
        if prompt_length is not None and (not isinstance(prompt_length, int | np.integer) or prompt_length < 0):
            raise ConfigError(f"prompt_length must be a number of tokens, or None, not {prompt_length!r}.")
        if len(token_ids) != trie.levels:
            raise TableError(f"Tokens of {len(token_ids)} levels for IDs of {trie.levels}.")
        self.trie = trie
        self.tokens = [np.asarray(tokens, np.int64) for tokens in token_ids]
        self.prompt_length = prompt_length
        self.end = end
        self._rows_apart = rows_apart  # each row of a step comes in a call of its own
        self._prompts: set[bytes] = set()  # of the generation that goes on, where no length was given,
        self._begin = self._last = -1  # how long they are, and how long the rows of the last call were
        self.largest = max(max((int(tokens.max(initial=0)) for tokens in self.tokens), default=0), end or 0)
        self._codes = []
        for level, tokens in enumerate(self.tokens):
            codes = np.full(self.largest + 1, -1, np.int64)
            codes[tokens] = np.arange(len(tokens))
            if len(np.unique(tokens)) != len(tokens):
                raise TableError(f"Two codes of level {level} have the same token.")
            self._codes.append(codes)

    def generated(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """
        Return what was generated of the rows (b, length) that a model hands over: all but the prompt.

        Raises:
            TableError: they are shorter than the prompt is said to be.
        """
        if self.prompt_length is not None:
            if rows.shape[1] < self.prompt_length:
                raise TableError(
                    f"The model hands over {rows.shape[1]} tokens where the prompt should have {self.prompt_length}: "
                    "with inputs_embeds it leaves the prompt out. Leave prompt_length out: the first call says it."
                )
            return rows[:, self.prompt_length :]
        if not self._goes_on(rows):
            self._prompts = {np.ascontiguousarray(row).tobytes() for row in rows}
            self._begin = rows.shape[1]
        elif rows.shape[1] == self._begin:  # another row of the first step
            self._prompts |= {np.ascontiguousarray(row).tobytes() for row in rows}
        self._last = rows.shape[1]
        return rows[:, self._begin :]

    def _goes_on(self, rows: NDArray[np.int64]) -> bool:
        """Say whether a call is the next, or another row, of the generation that the calls before were of."""
        length = rows.shape[1]
        same_step = self._rows_apart and length == self._last
        if self._begin < 0 or not (same_step or self._begin < length == self._last + 1):
            return False
        if length == self._begin:
            return True
        if any(np.ascontiguousarray(row).tobytes() not in self._prompts for row in rows[:, : self._begin]):
            return False
        whole = self._begin + self.trie.levels
        # Behind a whole ID its end comes; where no row has it, this is a prompt that goes on from the last one.
        return self.end is None or length <= whole or bool((rows[:, whole] == self.end).any())

    def nodes(self, tokens: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
        """Return the level of the next token and the node of each row (b, length) of what was generated so far."""
        length = tokens.shape[1]
        level = length if self.end is not None else length % self.trie.levels
        if level >= self.trie.levels:
            return self.trie.levels, np.full(len(tokens), -1, np.int64)
        nodes = np.zeros(len(tokens), np.int64)
        for at in range(level):
            column = tokens[:, length - level + at]
            inside = (column >= 0) & (column <= self.largest)
            nodes = self.trie.step(nodes, np.where(inside, self._codes[at][np.where(inside, column, 0)], -1))
        if level and len(nodes) and (nodes < 0).all():
            raise TableError(
                f"After a prompt of {self._begin if self.prompt_length is None else self.prompt_length} tokens came "
                f"{tokens[0].tolist()}, with which no ID begins. Pass the length of the prompt, padding included (1 "
                "for an encoder-decoder model), or leave prompt_length out: the first call says it."
            )
        return level, nodes


class SemanticIdLogitsProcessor:
    """
    Lets a transformers model generate IDs of real items and nothing else.

        trie = PrefixTrie.of(table.codes_array)
        tokens = token_ids_of(tokenizer, table.codebook_sizes)
        processor = SemanticIdLogitsProcessor(trie, tokens, eos_token_id=tokenizer.eos_token_id)
        model.generate(**inputs, logits_processor=[processor], max_new_tokens=table.levels + 1)

    Args:
        trie: of the table's IDs.
        token_ids: see `token_ids_of`.
        prompt_length: tokens before the ID, padding included; 1 for an encoder-decoder model, 0 with `inputs_embeds`.
            By default the first call of a generation says it.
        eos_token_id: comes after the ID, and only then; None begins another ID instead.

    It works with sampling, greedy and beam search. A beam search that keeps more beams than there are IDs
    fills the rest with sequences of score −inf, as it does with every constraint.

    Cost: a binary search a level and sequence, on the CPU, whatever the number of items.
    """

    def __init__(
        self,
        trie: PrefixTrie,
        token_ids: Sequence[NDArray[Any]],
        *,
        prompt_length: int | None = None,
        eos_token_id: int | None = None,
    ) -> None:
        self._decoding = _Decoding(trie, token_ids, prompt_length, eos_token_id)

    def __call__(self, input_ids: "Tensor", scores: "Tensor") -> "Tensor":
        """Return the scores (b, vocabulary), −inf wherever no ID goes on."""
        import torch

        decoding = self._decoding
        if decoding.largest >= scores.shape[1]:
            raise TableError(
                f"The model scores {scores.shape[1]} tokens, an ID's token has the number {decoding.largest}. "
                "Call model.resize_token_embeddings(len(tokenizer))."
            )
        level, nodes = decoding.nodes(decoding.generated(input_ids.cpu().numpy()))
        allowed = torch.full_like(scores, -torch.inf)
        if level == decoding.trie.levels:
            allowed[:, decoding.end] = scores[:, decoding.end]
            return allowed
        at, codes = decoding.trie.allowed(nodes)
        rows = torch.from_numpy(at).to(scores.device)
        columns = torch.from_numpy(decoding.tokens[level][codes]).to(scores.device)
        allowed[rows, columns] = scores[rows, columns]
        return allowed


def prefix_allowed_tokens_fn(
    trie: PrefixTrie, token_ids: Sequence[NDArray[Any]], *, prompt_length: int | None = None, eos_token_id: int
) -> Callable[[int, "Tensor"], list[int]]:
    """
    Return the same constraint as `SemanticIdLogitsProcessor`, for `model.generate(prefix_allowed_tokens_fn=...)`.

    It is asked once a sequence and step, which is slower.
    """
    decoding = _Decoding(trie, token_ids, prompt_length, eos_token_id, rows_apart=True)
    asked = False

    def allowed(batch: int, input_ids: "Tensor") -> list[int]:
        nonlocal asked
        generated = decoding.generated(input_ids.cpu().numpy()[None])
        first, asked = not asked, True
        try:
            level, nodes = decoding.nodes(generated)
        except TableError:
            if first:  # before anything was generated: the prompt is longer than it is said to be
                raise
            return [eos_token_id]  # one row of many: a beam that was filled up, whose score is -inf already
        if level == trie.levels:
            return [eos_token_id]
        return cast("list[int]", decoding.tokens[level][trie.allowed(nodes)[1]].tolist())

    return allowed
