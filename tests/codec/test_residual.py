"""Encode and decode: exact against a slow loop, and the same item the same code in any company."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from semid_dataset.codec import _search
from semid_dataset.codec import residual as room
from semid_dataset.codec._networks import ResidualMLP
from semid_dataset.codec._search import BeamSearch
from semid_dataset.codec.residual import ResidualQuantizer
from semid_dataset.errors import EmbeddingError, TableError
from semid_dataset.features import FeatureMatrix
from semid_dataset.table.table import SemanticIdTable, build_table_buffers

integers = st.integers(min_value=-20, max_value=20)


def random_quantizer(
    sizes: tuple[int, ...] = (16, 16, 16), dim: int = 12, beam: int = 4, seed: int = 0, *, networks: bool = False
) -> ResidualQuantizer:
    """Return codebooks whose words get shorter from level to level, as residuals do."""
    generator = torch.Generator().manual_seed(seed)
    books = [torch.randn(size, dim, generator=generator) / 2**level for level, size in enumerate(sizes)]
    modules: dict[str, Any] = {}
    if networks:
        for name in ("encoder", "decoder"):
            module = ResidualMLP(dim, 20, generator)
            module.last = torch.randn(dim, 20, generator=generator) * 0.05
            modules[name] = module
    return ResidualQuantizer(books, beam=beam, mean=torch.full((dim,), 0.5), scale=2.0, **modules)


def random_vectors(n: int, dim: int = 12, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32) * 3


def slow_greedy(vectors: NDArray[Any], books: list[NDArray[Any]]) -> NDArray[np.int64]:
    """Algorithm 1 of SoundStream, one item and one code after the other."""
    codes = np.zeros((len(vectors), len(books)), dtype=np.int64)
    for item, vector in enumerate(vectors):
        residual = vector.astype(np.int64)
        for level, book in enumerate(books):
            distances = [int(((residual - word) ** 2).sum()) for word in book]
            codes[item, level] = distances.index(min(distances))
            residual = residual - book[codes[item, level]]
    return codes


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_greedy_encode_equals_a_slow_loop_on_integers(data: st.DataObject) -> None:
    """Sums of small integers are exact, so that there is one right answer, ties included."""
    dim = data.draw(st.integers(1, 4))
    seed = data.draw(st.integers(0, 2**32 - 1))
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    random = np.random.default_rng(seed)
    books = [random.integers(-9, 10, (size, dim)) for size in sizes]
    vectors = random.integers(-30, 31, (data.draw(st.integers(1, 30)), dim))
    quantizer = ResidualQuantizer([torch.from_numpy(book).float() for book in books], beam=1)
    assert np.array_equal(quantizer.encode(vectors.astype(np.float32)), slow_greedy(vectors, books))


@pytest.mark.parametrize("beam", [1, 3])
def test_without_tables_the_search_finds_the_same(monkeypatch: pytest.MonkeyPatch, beam: int) -> None:
    """Codebooks too large for tables of products go through plain products: exact on integers, so equal."""
    random = np.random.default_rng(0)
    books = [torch.from_numpy(random.integers(-9, 10, (11, 5))).float() for _ in range(3)]
    vectors = random.integers(-30, 31, (200, 5)).astype(np.float32)
    with_tables = ResidualQuantizer(books, beam=beam)
    monkeypatch.setattr(_search, "TABLE_FLOATS", 0)
    without = ResidualQuantizer(books, beam=beam)
    assert without.search.tables is None
    assert np.array_equal(with_tables.encode(vectors), without.encode(vectors))


def test_a_wide_beam_finds_the_best_of_all_sums() -> None:
    """As wide as there are sums it is an exhaustive search."""
    quantizer = random_quantizer((4, 4, 4), beam=64)
    vectors = random_vectors(100)
    every = np.array(np.meshgrid(*[range(4)] * 3, indexing="ij")).reshape(3, -1).T
    distances = ((vectors[:, None, :] - quantizer.decode(every)[None]) ** 2).sum(2)
    assert np.array_equal(quantizer.encode(vectors), every[distances.argmin(1)])


def test_weighed_prefixes_find_the_best_of_all_sums() -> None:
    """The errors of the first one and two codes count 0.5 and a third of it: held against every sum there is."""
    quantizer = random_quantizer((4, 4, 4), beam=64)
    quantizer.search = BeamSearch(quantizer.codebooks, 64, 0.5)
    vectors = random_vectors(200)
    latents = quantizer.latents(vectors).numpy()
    every = np.array(np.meshgrid(*[range(4)] * 3, indexing="ij")).reshape(3, -1).T
    wanted = np.zeros((200, 64))
    for depth, weight in ((1, 0.5), (2, 0.5 / 3), (3, 1.0)):
        sums = quantizer.search.sums(torch.from_numpy(every[:, :depth].copy())).numpy()
        wanted += weight * ((latents[:, None, :] - sums[None]) ** 2).sum(2)
    codes = quantizer.encode(vectors)
    assert np.array_equal(codes, every[wanted.argmin(1)])
    assert not np.array_equal(codes, random_quantizer((4, 4, 4), beam=64).encode(vectors))


def test_kept_sums_are_distinct_and_best_first() -> None:
    """Asking for one gives the first of them."""
    quantizer = random_quantizer(beam=8)
    vectors = random_vectors(50)
    kept = quantizer.candidates(vectors, 8).numpy()
    assert kept.shape == (50, 8, 3)
    errors = ((quantizer.decode(kept.reshape(-1, 3)).reshape(50, 8, -1) - vectors[:, None]) ** 2).sum(2)
    assert (np.diff(errors, axis=1) > -1e-3).all()
    assert all(len({tuple(codes) for codes in item}) == 8 for item in kept.tolist())
    assert np.array_equal(kept[:, 0], quantizer.encode(vectors))


def test_error_does_not_grow_with_the_beam() -> None:
    """On average; for one item a wider beam may lose the sum that would have won."""
    vectors = random_vectors(2000)
    errors = []
    for beam in (1, 2, 4, 8, 16):
        quantizer = random_quantizer(beam=beam)
        errors.append(float(((vectors - quantizer.decode(quantizer.encode(vectors))) ** 2).mean()))
    assert errors == sorted(errors, reverse=True)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(1, 600), networks=st.booleans())
def test_permuting_items_permutes_codes(seed: int, n: int, networks: bool) -> None:
    """Also floats, also behind networks: blocks have one shape, and rows do not see each other."""
    quantizer = random_quantizer(networks=networks)
    vectors = random_vectors(n, seed=seed)
    order = np.random.default_rng(seed).permutation(n)
    assert np.array_equal(quantizer.encode(vectors[order]), quantizer.encode(vectors)[order])


@pytest.mark.parametrize("networks", [False, True])
@pytest.mark.parametrize(("dim", "beam"), [(32, 4), (384, 16)])
def test_codes_do_not_depend_on_the_company(dim: int, beam: int, networks: bool) -> None:
    """One at a time, in odd batches or all at once: the same codes, or extending a table would move IDs."""
    quantizer = random_quantizer((256,) * 4, dim=dim, beam=beam, networks=networks)
    vectors = random_vectors(quantizer.search.rows + 77, dim=dim)
    together = quantizer.encode(vectors)
    pieces = [quantizer.encode(vectors[begin : begin + size]) for begin, size in ((0, 1), (1, 1), (2, 7), (9, 90))]
    assert np.array_equal(np.concatenate(pieces), together[:99])
    assert np.array_equal(quantizer.encode(vectors[-50:]), together[-50:])


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_other_float_types_give_the_same_codes(dtype: str) -> None:
    """Values that float16 holds exactly are encoded alike in every type."""
    quantizer = random_quantizer()
    vectors = random_vectors(100).astype(np.float16)
    native = vectors.astype(dtype).astype(np.dtype(dtype).newbyteorder("="))
    assert np.array_equal(quantizer.encode(native), quantizer.encode(vectors.astype(np.float32)))


def test_torch_in_torch_out() -> None:
    """Tensors come back as int64 codes and float32 vectors, with the numbers that numpy gets."""
    quantizer = random_quantizer()
    vectors = random_vectors(30)
    codes = quantizer.encode(torch.from_numpy(vectors))
    assert codes.dtype == torch.int64
    assert np.array_equal(codes.numpy(), quantizer.encode(vectors))
    rebuilt = quantizer.decode(codes)
    assert rebuilt.dtype == torch.float32
    assert np.array_equal(rebuilt.numpy(), quantizer.decode(codes.numpy()))


def test_codes_are_as_small_as_their_type_may_be() -> None:
    """256 codes are bytes, more are two bytes."""
    assert random_quantizer((256, 2)).encode(random_vectors(3)).dtype == np.uint8
    assert random_quantizer((300, 2)).encode(random_vectors(3)).dtype == np.uint16


def test_nothing_in_nothing_out() -> None:
    """No items are no error."""
    quantizer = random_quantizer()
    assert quantizer.encode(random_vectors(0)).shape == (0, 3)
    assert quantizer.decode(np.zeros((0, 3), dtype=np.uint8)).shape == (0, 12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_named(value: float) -> None:
    """The first of them, wherever its block lies."""
    quantizer = random_quantizer(dim=2)
    vectors = random_vectors(quantizer.search.rows + 10, dim=2)
    vectors[-3:, 1] = value
    with pytest.raises(EmbeddingError, match=f"Row {len(vectors) - 3} "):
        quantizer.encode(vectors)


def test_values_beyond_float32_are_not_finite() -> None:
    """A float64 that does not fit is an error, not an inf that gets some code."""
    with pytest.raises(EmbeddingError, match="Row 1 "):
        random_quantizer(dim=1).encode(np.array([[1.0], [1e300]]))


@pytest.mark.parametrize("shape", [(3, 11), (12,), (2, 3, 12)])
def test_vectors_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    """The message says both shapes."""
    with pytest.raises(EmbeddingError, match="12 dims"):
        random_quantizer().encode(np.zeros(shape, dtype=np.float32))


def test_codes_that_cannot_be_are_refused() -> None:
    """Beyond the codebook, negative, of no level, or of more than there are."""
    quantizer = random_quantizer()
    for codes in (np.array([[0, 0, 16]]), np.array([[0, -1, 0]]), np.array([[0, 0, 0, 0]]), np.zeros((1, 0), int)):
        with pytest.raises(EmbeddingError):
            quantizer.decode(codes)


@pytest.mark.parametrize("networks", [False, True])
def test_leading_codes_stand_for_a_vector_too(networks: bool) -> None:
    """The first m codes alone decode to what a quantizer of so many levels would."""
    quantizer = random_quantizer(networks=networks)
    codes = quantizer.encode(random_vectors(50))
    shorter = ResidualQuantizer(
        quantizer.codebooks[:2], mean=quantizer.mean, scale=quantizer.scale, decoder=quantizer.decoder
    )
    assert np.array_equal(quantizer.decode(codes[:, :2]), shorter.decode(codes[:, :2]))
    assert np.array_equal(quantizer.decode(codes), quantizer.decode(codes[:, :3]))


@pytest.mark.parametrize("networks", [False, True])
def test_arrays_and_back_is_identity(networks: bool) -> None:
    """The same codes and the same vectors, bit for bit."""
    quantizer = random_quantizer((16, 300, 5), networks=networks)
    arrays, description = quantizer.to_arrays()
    again = ResidualQuantizer.from_arrays(arrays, description)
    vectors = random_vectors(200)
    assert np.array_equal(again.encode(vectors), quantizer.encode(vectors))
    assert np.array_equal(again.decode(again.encode(vectors)), quantizer.decode(quantizer.encode(vectors)))
    assert again.codebook_sizes == (16, 300, 5)


def test_arrays_that_do_not_fit_are_a_table_error() -> None:
    """Missing, cut off or of another width."""
    arrays, description = random_quantizer(networks=True).to_arrays()
    for broken in (
        {name: array for name, array in arrays.items() if name != "codebooks"},
        arrays | {"codebooks": arrays["codebooks"][:-1]},
        arrays | {"mean": arrays["mean"][:-1]},
        {name: array for name, array in arrays.items() if name != "encoder.last"},
        arrays | {"decoder.first": arrays["decoder.first"][:, :-1]},
    ):
        with pytest.raises(TableError, match="cannot be read"):
            ResidualQuantizer.from_arrays(broken, description)
    with pytest.raises(TableError, match="cannot be read"):
        ResidualQuantizer.from_arrays(arrays, description | {"beam": 0})


def test_one_feature_passes_through() -> None:
    """Without a fusion the one feature's matrix is what is encoded; anything else is refused."""
    quantizer = random_quantizer()
    vectors = random_vectors(9)
    feature = FeatureMatrix("81", np.arange(9), vectors)
    assert np.array_equal(quantizer.encode_features([feature], 9), quantizer.encode(vectors))
    with pytest.raises(EmbeddingError, match="one feature"):
        quantizer.encode_features([feature, feature], 9)
    with pytest.raises(EmbeddingError, match="one feature"):
        quantizer.encode_features([feature], 10)


def test_networks_start_as_the_identity() -> None:
    """Bit for bit, so that training starts from the codebooks' own error."""
    vectors = torch.from_numpy(random_vectors(5))
    assert torch.equal(ResidualMLP(12, 7)(vectors), vectors)


def test_prefixes_have_sums() -> None:
    """`sums` serves the first levels alone, as fitting the next one needs it."""
    quantizer = random_quantizer()
    search = BeamSearch(quantizer.codebooks, 1)
    codes = torch.tensor([[3, 5]])
    assert torch.allclose(search.sums(codes)[0], quantizer.codebooks[0][3] + quantizer.codebooks[1][5])


def test_a_saved_quantizer_gives_the_same_codes(tmp_path: Path) -> None:
    """Also out of a table, and by its file."""
    quantizer = ResidualQuantizer(
        [torch.randn(16, 6), torch.randn(300, 6)], beam=3, prefix_weight=0.4, scale=2.0, mean=torch.ones(6)
    )
    vectors = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    folder = quantizer.save_pretrained(tmp_path / "a" / "quantizer")
    assert json.loads((folder / "config.json").read_text())["codebook_sizes"] == [16, 300]
    weights, description = quantizer.to_arrays()
    codes = quantizer.encode(vectors)
    buffers = build_table_buffers(range(50), codes, info={"quantizer": description}, weights=weights)
    (tmp_path / "table.safetensors").write_bytes(b"".join(buffers))
    for path in (folder, folder / "quantizer.safetensors", tmp_path / "table.safetensors"):
        assert ResidualQuantizer.from_pretrained(path).prefix_weight == 0.4
        np.testing.assert_array_equal(ResidualQuantizer.from_pretrained(path).encode(vectors), codes)


def test_a_table_without_a_quantizer_cannot_be_read_as_one(tmp_path: Path) -> None:
    """The error names the file."""
    SemanticIdTable.from_mapping({1: [1, 2]}).save(tmp_path / "t")
    with pytest.raises(TableError, match="holds no quantizer"):
        ResidualQuantizer.from_pretrained(tmp_path / "t")


@pytest.mark.parametrize("networks", [False, True])
def test_a_gpu_without_room_leaves_the_work_to_the_cpu(
    networks: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the same blocks, and so the same codes; a warning says so."""
    quantizer = random_quantizer(networks=networks)
    vectors = random_vectors(300)
    wanted = quantizer.encode(vectors)
    rebuilt, latents = quantizer.decode(wanted), quantizer.latents(vectors)
    quantizer.device = torch.device("cuda")
    for name in ("_candidates", "_decode", "_all_latents"):
        real = getattr(ResidualQuantizer, name)

        def full(self: ResidualQuantizer, *given: Any, real: Any = real) -> Any:
            if self.device.type == "cuda":
                raise room.OutOfMemory("injected")
            return real(self, *given)

        monkeypatch.setattr(ResidualQuantizer, name, full)
    assert np.array_equal(quantizer.encode(vectors), wanted)
    assert np.array_equal(quantizer.decode(wanted), rebuilt)
    assert torch.equal(quantizer.latents(vectors), latents)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert "Out of memory on cuda" in caplog.text


def test_no_room_on_the_cpu_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nowhere else to go."""

    def full(*given: Any) -> Any:
        raise room.OutOfMemory("injected")

    monkeypatch.setattr(ResidualQuantizer, "_candidates", full)
    with pytest.raises(room.OutOfMemory):
        random_quantizer().encode(random_vectors(3))


def test_the_first_bad_row_is_named_wherever_its_block_is() -> None:
    """Blocks are looked at when all are done; the message is about the first row all the same."""
    quantizer = random_quantizer()
    vectors = random_vectors(5 * quantizer.search.rows)
    first = 2 * quantizer.search.rows + 3
    for row in (4 * quantizer.search.rows, first + 2, first):
        vectors[row, 1] = np.nan
    for work in (quantizer.encode, quantizer.latents):
        with pytest.raises(EmbeddingError, match=f"Row {first} "):
            work(vectors)


@pytest.mark.parametrize("features", [None, "x", 3, {}, np.zeros((9, 4)), [np.zeros((9, 4))]])
def test_what_are_no_features_is_refused_by_name(features: object) -> None:
    """Vectors themselves, most often: they go to `encode`."""
    quantizer = ResidualQuantizer([torch.zeros(4, 4)])
    with pytest.raises(EmbeddingError, match="list of FeatureMatrix"):
        quantizer.encode_features(features, 9)  # type: ignore[arg-type]
    with pytest.raises(EmbeddingError, match="number of items"):
        quantizer.vectors_of([], "9")  # type: ignore[arg-type]
