"""One item, one tuple: always within capacity, by the nearest free code, and never the all-zero one."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from semid_dataset.codec import unique as collisions
from semid_dataset.codec.residual import ResidualQuantizer
from semid_dataset.codec.unique import group_sizes, resolve_collisions, shared_items, vector_hashes
from semid_dataset.format.tensors import packed_rows


def random_quantizer(sizes: tuple[int, ...], dim: int = 3, seed: int = 0) -> ResidualQuantizer:
    generator = torch.Generator().manual_seed(seed)
    return ResidualQuantizer(
        [torch.randn(size, dim, generator=generator) / 2**level for level, size in enumerate(sizes)], beam=2
    )


def tuples(codes: NDArray[Any]) -> list[tuple[int, ...]]:
    return [tuple(row) for row in codes.tolist()]


def on_a_line(*sizes: int) -> ResidualQuantizer:
    """Return codebooks of whole numbers: 100 apart on the first level, 1 apart on the last."""
    steps = [100.0 ** (len(sizes) - 1 - level) for level in range(len(sizes))]
    return ResidualQuantizer(
        [torch.arange(float(size))[:, None] * step for size, step in zip(sizes, steps, strict=True)], beam=1
    )


def line(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)[:, None]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_unique_for_every_input_within_capacity(data: st.DataObject) -> None:
    """With duplicates, with tuples taken, up to the last free tuple; zeros are never given, codes in range."""
    sizes = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    capacity = math.prod(sizes) - 1
    n = data.draw(st.integers(0, min(capacity, 60)))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    quantizer = random_quantizer(sizes)
    vectors = random.integers(-2, 3, (n, 3)).astype(np.float32)
    every = np.array(np.meshgrid(*map(range, sizes), indexing="ij"), dtype=np.uint8).reshape(len(sizes), -1).T[1:]
    taken = every[random.permutation(len(every))[: data.draw(st.integers(0, min(capacity - n, 30)))]]
    codes = quantizer.encode(vectors)
    result = resolve_collisions(quantizer, vectors, codes, taken=taken)
    given_out = tuples(result.codes)
    assert len(set(given_out)) == n
    assert not set(given_out) & set(tuples(taken))
    assert (0,) * len(sizes) not in given_out
    assert (result.codes < np.array(sizes)).all()
    assert result.shared == 0
    assert result.moved == int((codes != result.codes).any(1).sum())
    assert result.codes.dtype == codes.dtype


def test_the_best_fit_keeps_the_tuple_and_others_take_the_nearest_code() -> None:
    """5.0 keeps 5; 5.2 finds 6 nearest, and 4.9, which fits better, was asked before and got 4."""
    quantizer = on_a_line(10)
    vectors = line(5.2, 5.0, 4.9)
    codes = quantizer.encode(vectors)
    assert codes[:, 0].tolist() == [5, 5, 5]
    result = resolve_collisions(quantizer, vectors, codes)
    assert result.codes[:, 0].tolist() == [6, 5, 4]
    assert result.moved == 2
    assert codes[:, 0].tolist() == [5, 5, 5], "the caller's codes stay as they were"


def test_of_equal_fits_the_first_item_keeps_it() -> None:
    """Exact duplicates are counted and each has its own ID."""
    quantizer = on_a_line(10)
    result = resolve_collisions(quantizer, line(7, 7, 7, 3), quantizer.encode(line(7, 7, 7, 3)))
    assert result.codes[0, 0] == 7
    assert result.codes[3, 0] == 3
    assert {result.codes[1, 0], result.codes[2, 0]} == {6, 8}
    assert result.exact_duplicates == 2


def test_leading_codes_stay_while_last_codes_are_free() -> None:
    """A moved item keeps its place in the hierarchy."""
    random = np.random.default_rng(0)
    quantizer = random_quantizer((8, 64))
    vectors = random.standard_normal((200, 3), dtype=np.float32)
    codes = quantizer.encode(vectors)
    assert max(Counter(codes[:, 0].tolist()).values()) <= 63
    result = resolve_collisions(quantizer, vectors, codes)
    assert result.moved > 0
    assert np.array_equal(result.codes[:, 0], codes[:, 0])


def test_a_full_prefix_overflows_to_its_nearest_neighbour() -> None:
    """Five items where four codes are: the one too many goes to the next first code, and no other item moves."""
    quantizer = on_a_line(9, 4)
    vectors = line(300, 300, 301, 302, 303, 400)
    result = resolve_collisions(quantizer, vectors, quantizer.encode(vectors))
    assert tuples(result.codes) == [(3, 0), (2, 3), (3, 1), (3, 2), (3, 3), (4, 0)]


def test_taken_tuples_stay_with_those_who_have_them() -> None:
    """However well a new item fits, it yields; so does it to tuples that only an overflow would meet."""
    quantizer = on_a_line(3, 2)
    taken = np.array([[1, 0], [1, 1], [2, 0]], dtype=np.uint8)
    result = resolve_collisions(quantizer, line(100), quantizer.encode(line(100)), taken=taken)
    assert tuples(result.codes)[0] not in {*tuples(taken), (0, 0)}


def test_the_all_zero_tuple_is_given_to_nobody() -> None:
    """Not even to the item at the very place that it stands for."""
    quantizer = on_a_line(4, 4)
    vectors = line(0, 0, 0.1)
    assert not quantizer.encode(vectors).any()
    result = resolve_collisions(quantizer, vectors, quantizer.encode(vectors))
    assert result.codes.any(1).all()
    assert result.moved == 3


def test_beyond_capacity_items_share_and_are_counted() -> None:
    """Every tuple is in use before two share, and zeros are still given to nobody."""
    quantizer = on_a_line(2, 2)
    vectors = line(0, 0, 100, 101, 1, 1, 0)
    result = resolve_collisions(quantizer, vectors, quantizer.encode(vectors))
    assert set(tuples(result.codes)) == {(0, 1), (1, 0), (1, 1)}
    counts = Counter(tuples(result.codes))
    assert result.shared == sum(count for count in counts.values() if count > 1)


def test_the_order_of_items_decides_nothing_but_ties() -> None:
    """Permuted items get the same tuples."""
    random = np.random.default_rng(1)
    quantizer = random_quantizer((4, 16), dim=6)
    vectors = random.standard_normal((50, 6), dtype=np.float32)
    order = random.permutation(50)
    first = resolve_collisions(quantizer, vectors, quantizer.encode(vectors))
    second = resolve_collisions(quantizer, vectors[order], quantizer.encode(vectors[order]))
    assert first.moved > 0
    assert np.array_equal(first.codes[order], second.codes)


def test_many_equal_items_fill_the_tree_from_below() -> None:
    """3,000 copies of one vector: the prefix first, then its neighbours, a level at a time."""
    quantizer = random_quantizer((16, 16, 16))
    vectors = np.ones((3000, 3), dtype=np.float32)
    result = resolve_collisions(quantizer, vectors, quantizer.encode(vectors))
    assert len(set(tuples(result.codes))) == 3000
    bucket = quantizer.encode(vectors[:1])[0]
    assert (result.codes[:, 0] == bucket[0]).sum() in {255, 256}
    assert result.exact_duplicates == 2999


def one_by_one(
    quantizer: ResidualQuantizer, vectors: NDArray[np.float32], codes: NDArray[Any], taken: NDArray[Any]
) -> NDArray[Any]:
    """The same rules, item by item, over every tuple that there is."""
    sizes, levels = quantizer.codebook_sizes, codes.shape[1]
    words = [book.numpy() for book in quantizer.codebooks]
    errors = collisions.squared_errors(quantizer, vectors, codes)
    order = sorted(range(len(codes)), key=lambda row: (errors[row], row))
    given = {(0,) * levels, *tuples(taken)}
    result, displaced = codes.copy(), []
    for row in order:
        if (wanted := tuple(codes[row].tolist())) in given:
            displaced.append(row)
        given.add(wanted)

    def room(prefix: tuple[int, ...]) -> bool:
        if len(prefix) == levels:
            return prefix not in given
        return any(room((*prefix, code)) for code in range(sizes[len(prefix)]))

    for row in displaced:
        prefix = tuple(codes[row].tolist())[:-1]
        while not room(prefix):
            prefix = prefix[:-1]
        while len(prefix) < levels:
            residual = quantizer.latents(vectors[row : row + 1]).numpy()[0].astype(np.float64)
            residual -= sum((words[level][code] for level, code in enumerate(prefix)), np.zeros(vectors.shape[1]))
            distances = np.square(words[len(prefix)] - residual).sum(1)
            free = [code for code in range(sizes[len(prefix)]) if room((*prefix, code))]
            prefix = (*prefix, min(free, key=lambda code: (distances[code], code)))
        given.add(prefix)
        result[row] = prefix
    return result


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_blocks_give_what_one_by_one_gives(data: st.DataObject) -> None:
    """Whatever the size of a block, with overflows into buckets of others, before and after they are served."""
    sizes = tuple(data.draw(st.lists(st.integers(2, 5), min_size=1, max_size=4)))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    n = data.draw(st.integers(0, min(math.prod(sizes) - 1, 60)))
    quantizer = random_quantizer(sizes)
    vectors = random.standard_normal((n, 3)).astype(np.float32) * np.float32(random.random())
    codes = quantizer.encode(vectors)
    every = np.array(np.meshgrid(*map(range, sizes), indexing="ij"), dtype=np.uint8).reshape(len(sizes), -1).T[1:]
    taken = every[random.permutation(len(every))[: data.draw(st.integers(0, min(math.prod(sizes) - 1 - n, 30)))]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collisions, "BLOCK", data.draw(st.sampled_from([1, 3, 16, 4096])))
        patch.setattr(collisions, "GROUPS", data.draw(st.sampled_from([1, 2, 7, 1 << 20])))
        found = resolve_collisions(quantizer, vectors, codes, taken=taken).codes
    assert tuples(found) == tuples(one_by_one(quantizer, vectors, codes, taken))


def test_a_crowd_fills_prefix_after_prefix() -> None:
    """Many blocks that overflow, into buckets and elsewhere, and places that fill up after they were looked for."""
    random = np.random.default_rng(3)
    quantizer = random_quantizer((6, 6, 12))
    vectors = random.standard_normal((330, 3)).astype(np.float32) * np.float32(0.2)
    codes = quantizer.encode(vectors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collisions, "BLOCK", 64)
        found = resolve_collisions(quantizer, vectors, codes)
    assert found.moved > 200
    assert tuples(found.codes) == tuples(one_by_one(quantizer, vectors, codes, codes[:0]))


@pytest.mark.parametrize(("sizes", "dtype"), [((4, 8, 32), np.uint8), ((3, 300, 2), np.uint16), ((2,) * 9, np.uint8)])
def test_groups_looked_at_in_pieces(sizes: tuple[int, ...], dtype: Any) -> None:
    """Tuples of 4 bytes, of 8 and of more give the same in one piece and in many."""
    random = np.random.default_rng(2)
    quantizer = random_quantizer(sizes)
    vectors = random.integers(-2, 3, (300, 3)).astype(np.float32)
    codes = quantizer.encode(vectors)
    assert codes.dtype == dtype
    whole = resolve_collisions(quantizer, vectors, codes, taken=codes[::9])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collisions, "GROUPS", 5)
        pieces = resolve_collisions(quantizer, vectors, codes, taken=codes[::9])
    assert np.array_equal(pieces.codes, whole.codes)
    assert pieces.exact_duplicates == whole.exact_duplicates == 300 - len(np.unique(vectors, axis=0))
    assert whole.displaced is not None
    assert pieces.displaced is not None
    assert np.array_equal(pieces.displaced, whole.displaced)


@pytest.mark.parametrize(("levels", "dtype"), [(1, np.uint8), (3, np.uint8), (4, np.uint16), (16, np.uint16)])
def test_packed_rows_sort_as_rows_do(levels: int, dtype: Any) -> None:
    """As integers where they fit into one, as strings beyond; zeros at the end count."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 3, (300, levels)).astype(dtype)
    codes[:, -1] *= np.iinfo(dtype).max // 3
    packed = packed_rows(codes)
    assert codes[np.argsort(packed, kind="stable")].tolist() == sorted(codes.tolist())
    assert len(np.unique(packed)) == len(set(tuples(codes)))


def test_groups_and_shares_are_counted() -> None:
    """Of the items, not of the tuples."""
    codes = np.array([[1, 2], [1, 2], [0, 1], [3, 3], [1, 2]], np.uint8)
    assert group_sizes(codes).tolist() == [1, 3, 1]
    assert shared_items(codes) == 3
    assert shared_items(codes, np.array([[3, 3], [9, 9]], np.uint8)) == 4
    assert group_sizes(codes[:0]).tolist() == []
    assert shared_items(codes[:0], codes) == 0


def test_vectors_that_differ_in_a_bit_have_other_hashes() -> None:
    """And equal ones the same, wherever they stand; minus zero is not zero."""
    vectors = np.random.default_rng(0).standard_normal((500, 7)).astype(np.float32)
    vectors[:, 3] = 0
    vectors[250:] = vectors[:250]
    vectors[499, 3] = -0.0
    hashes = vector_hashes(vectors)
    assert np.array_equal(hashes[:249], hashes[250:499])
    assert len(np.unique(hashes)) == 251


def test_wide_tuples_are_made_unique() -> None:
    """Sixteen levels do not fit into an integer."""
    quantizer = random_quantizer((2,) * 16)
    vectors = np.ones((300, 3), dtype=np.float32)
    result = resolve_collisions(quantizer, vectors, quantizer.encode(vectors))
    assert len(set(tuples(result.codes))) == 300
    assert result.exact_duplicates == 299


@pytest.mark.parametrize("size", [2, 4096])
def test_small_and_large_codebooks(size: int) -> None:
    """uint16 codes too."""
    quantizer = random_quantizer((size,) * 3, dim=4)
    vectors = np.random.default_rng(0).standard_normal((7, 4), dtype=np.float32).round()
    result = resolve_collisions(quantizer, vectors, quantizer.encode(vectors))
    assert result.shared == 0
