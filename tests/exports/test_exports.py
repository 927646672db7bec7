"""Every export read back gives the same IDs, and a constrained model emits nothing but items."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from world import ITEM0, SMALL, vectors_of

from semid_dataset import LazySemanticIds, SemanticIdTable
from semid_dataset.errors import ConfigError, TableError
from semid_dataset.exports import (
    FORMATS,
    PrefixTrie,
    SemanticIdLogitsProcessor,
    export,
    flat_ids,
    prefix_allowed_tokens_fn,
    read_export,
    token_ids_of,
    token_list,
    unflatten_ids,
)

READABLE = [name for name, form in FORMATS.items() if form.reader is not None]
STYLES = ["letter", "s_letter", "item"]


def random_table(items: int = 50, levels: int = 3, codes: int = 20, seed: int = 0, *, names: bool = False):
    rng = np.random.default_rng(seed)
    ids = rng.integers(codes, size=(items, levels)).tolist()
    keys = [f"sku {k}" if names else ITEM0 + 7 * k for k in range(items)]
    return SemanticIdTable.from_mapping(dict(zip(keys, ids, strict=True)), codebook_sizes=codes)


def same(one: SemanticIdTable, other: SemanticIdTable) -> bool:
    return list(one.items()) == list(other.items())


# --- files ---


@pytest.mark.parametrize("form", READABLE)
@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("codes", [2, 20, 1000])
def test_every_export_read_back_gives_the_same_ids(tmp_path: Path, form: str, names: bool, codes: int) -> None:
    """Integer and string items, codes of one and of two bytes, items that share an ID."""
    table = random_table(codes=codes, names=names)
    path = tmp_path / "deep" / f"ids{FORMATS[form].suffix}"
    written = export(table, path, form)
    assert written[0] == path
    assert all(file.is_file() for file in written)
    assert same(read_export(path, form), table)
    assert same(read_export(path), table)  # the ending alone says what it is
    assert sorted(path.parent.iterdir()) == sorted(written)


@pytest.mark.parametrize("form", READABLE)
def test_a_table_of_one_item_survives(tmp_path: Path, form: str) -> None:
    """Also the zero ID, which padding must not swallow."""
    table = SemanticIdTable.from_mapping({7: [0, 0, 0, 0]})
    assert same(read_export(export(table, tmp_path / f"ids{FORMATS[form].suffix}")[0]), table)


@pytest.mark.parametrize("form", READABLE)
def test_a_table_without_items_survives(tmp_path: Path, form: str) -> None:
    """Nothing in, nothing out."""
    table = SemanticIdTable.default(4)
    assert len(read_export(export(table, tmp_path / f"ids{FORMATS[form].suffix}")[0])) == 0


@pytest.mark.parametrize("style", STYLES)
def test_tokens_of_every_style_are_read(tmp_path: Path, style: str) -> None:
    """The index names its style in every token."""
    table = random_table(levels=5)
    assert same(read_export(export(table, tmp_path / "x.index.json", style=style)[0]), table)


def test_the_spelling_of_tokens_is_that_of_their_readers(tmp_path: Path) -> None:
    """LC-Rec and MiniOneRec write <a_12>; the other two spellings are in use as well."""
    table = SemanticIdTable.from_mapping({"9": [12, 3]})
    for style, tokens in [
        ("letter", ["<a_12>", "<b_3>"]),
        ("s_letter", ["<s_a_12>", "<s_b_3>"]),
        ("item", ["<item_L0_C12>", "<item_L1_C3>"]),
    ]:
        export(table, tmp_path / "x.index.json", style=style)
        assert json.loads((tmp_path / "x.index.json").read_text()) == {"9": tokens}


def test_the_token_list_holds_every_code_not_only_those_in_use(tmp_path: Path) -> None:
    """An item that comes later may have any code."""
    tokens = token_list((3, 2))
    assert tokens == ["<a_0>", "<a_1>", "<a_2>", "<b_0>", "<b_1>"]
    table = random_table(levels=2)
    export(table, tmp_path / "x.tokens.json")
    written = json.loads((tmp_path / "x.tokens.json").read_text())
    assert written == token_list(table.codebook_sizes)
    assert len(set(written)) == sum(table.codebook_sizes)
    with pytest.raises(ConfigError, match="no IDs of items"):
        read_export(tmp_path / "x.tokens.json")


def test_parquet_holds_lists_and_offsets_that_start_at_0(tmp_path: Path) -> None:
    """Other readers see int64 items, lists of codes, and the same codes in one vocabulary."""
    parquet = pytest.importorskip("pyarrow.parquet")
    table = SemanticIdTable.from_mapping({1: [3, 1], 2: [0, 2]})
    export(table, tmp_path / "ids.parquet")
    rows = parquet.read_table(tmp_path / "ids.parquet").to_pylist()
    assert rows == [
        {"item_id": 1, "codes": [3, 1], "offset_codes": [3, 5]},
        {"item_id": 2, "codes": [0, 2], "offset_codes": [0, 6]},
    ]


def test_pt_is_one_row_a_level(tmp_path: Path) -> None:
    """GRID transposes what it loads, and wants integers that torch can index with."""
    import torch

    table = random_table(levels=4)
    export(table, tmp_path / "ids.pt")
    tensor = torch.load(tmp_path / "ids.pt", weights_only=True)
    assert tensor.dtype == torch.int64
    assert tensor.shape == (4, 50)
    assert np.array_equal(tensor.t().numpy(), table.codes_array)


def test_the_rules_of_other_readers_are_kept(tmp_path: Path) -> None:
    """What docs/formats.md promises: bands of offset codes, column k for item k, one text an ID, items as strings."""
    import torch

    parquet = pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(0)
    codes = np.unique(rng.integers([5, 9, 300], size=(60, 3)), axis=0)
    rng.shuffle(codes)
    items = rng.permutation(len(codes))
    table = SemanticIdTable.from_mapping(dict(zip(items.tolist(), codes.tolist(), strict=True)))
    for name in ("x.parquet", "x.pt", "x.index.json"):
        export(table, tmp_path / name)
    starts = np.cumsum([0, *table.codebook_sizes])
    for row in parquet.read_table(tmp_path / "x.parquet").to_pylist():
        offset = np.array(row["offset_codes"])
        assert ((offset >= starts[:-1]) & (offset < starts[1:])).all()
        assert (offset - starts[:-1]).tolist() == row["codes"] == table[row["item_id"]]
    tensor = torch.load(tmp_path / "x.pt", weights_only=True)
    assert all(tensor[:, item].tolist() == table[item] for item in range(len(table)))
    index = json.loads((tmp_path / "x.index.json").read_text())
    assert set(index) == {str(item) for item in items}
    assert len({"".join(tokens) for tokens in index.values()}) == len(table)
    assert {token for tokens in index.values() for token in tokens} <= set(token_list(table.codebook_sizes))


def test_an_array_without_its_items_is_refused(tmp_path: Path) -> None:
    """Codes alone belong to nobody; a list of another length belongs to another array."""
    path, beside = export(random_table(), tmp_path / "ids.npy")
    beside.write_text("[1, 2]")
    with pytest.raises(TableError, match=r"holds 2 items; 'ids\.npy' has 50 rows"):
        read_export(path)
    beside.unlink()
    with pytest.raises(TableError, match="missing"):
        read_export(path)


def test_an_export_cut_off_in_between_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An array is never found beside the items of another; `test_files` cuts it off while names change."""
    from semid_dataset import _files as files

    table = random_table(seed=1)
    path, beside = export(table, tmp_path / "ids.npy")
    real = files.os.fsync

    def interrupted(descriptor: int) -> None:
        real(descriptor)
        if any(".items.json" in one.name and one.name.endswith(".tmp") for one in tmp_path.iterdir()):
            raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(random_table(seed=2), path)
    monkeypatch.undo()
    assert same(read_export(path), table)
    assert sorted(one.name for one in tmp_path.iterdir()) == [path.name, beside.name]


@pytest.mark.parametrize("form", READABLE)
@pytest.mark.parametrize("content", [b"", b"{", b"nonsense", b"PK\x03\x04 cut off", b"\x93NUMPY cut off", b"[1, 2]"])
def test_foreign_files_are_errors_of_ours(tmp_path: Path, form: str, content: bytes) -> None:
    """One sentence that names the file, whatever it holds."""
    path = tmp_path / f"ids{FORMATS[form].suffix}"
    path.write_bytes(content)
    with pytest.raises(TableError, match=r"ids\."):
        read_export(path)


def test_an_unknown_ending_or_format_is_named(tmp_path: Path) -> None:
    """With what there is instead."""
    with pytest.raises(ConfigError, match=r"\.parquet"):
        export(random_table(), tmp_path / "ids.xyz")
    with pytest.raises(ConfigError, match="parquet"):
        export(random_table(), tmp_path / "ids.json", "yaml")
    with pytest.raises(ConfigError, match="s_letter"):
        export(random_table(), tmp_path / "ids.index.json", style="greek")


def test_tokens_of_the_wrong_level_are_refused(tmp_path: Path) -> None:
    """<b_1> in the first place is another ID."""
    (tmp_path / "x.index.json").write_text('{"7": ["<b_1>", "<a_2>"]}')
    with pytest.raises(TableError, match=r"item '7'.*<b_1>"):
        read_export(tmp_path / "x.index.json")


# --- numbers ---


@st.composite
def codes_and_sizes(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    sizes = draw(st.lists(st.integers(1, 65_536), min_size=1, max_size=4))
    rows = draw(st.lists(st.tuples(*(st.integers(0, size - 1) for size in sizes)), max_size=20))
    return np.array(rows, np.uint16).reshape(len(rows), len(sizes)), sizes


@given(codes_and_sizes(), st.integers(0, 1))
def test_flat_ids_are_bijections(given_codes: tuple[np.ndarray, list[int]], first: int) -> None:
    """Flat ids of two levels never meet, and 0 stays free."""
    codes, sizes = given_codes
    flat = flat_ids(codes, sizes, first=first)
    assert np.array_equal(unflatten_ids(flat, sizes, first=first), codes)
    assert flat.min(initial=first) >= first
    bounds = np.cumsum([first, *sizes])
    assert ((flat >= bounds[:-1]) & (flat < bounds[1:])).all()


def test_codes_beyond_their_level_are_named() -> None:
    """By row, level and size."""
    with pytest.raises(TableError, match=r"Row 1 has code 4 at level 0, which has 4 codes"):
        flat_ids(np.array([[3, 0], [4, 0]]), (4, 4))
    with pytest.raises(TableError, match="level 1"):
        unflatten_ids(np.array([[1, 2]]), (4, 4))


# --- the trie ---


@given(
    st.integers(1, 4).flatmap(
        lambda levels: st.lists(st.lists(st.integers(0, 5), min_size=levels, max_size=levels), min_size=1, max_size=40)
    )
)
@settings(max_examples=60)
def test_the_trie_knows_exactly_the_ids_and_their_prefixes(ids: list[list[int]]) -> None:
    """Children of every prefix, rows of every ID, and nothing else, as a slow look through the list finds them."""
    codes = np.array(ids, np.uint8)
    trie = PrefixTrie.of(codes)
    assert len(trie) == len({tuple(row) for row in ids})
    assert np.array_equal(trie.codes(), codes)
    prefixes = {tuple(row[:length]) for row in ids for length in range(len(row))}
    for prefix in prefixes:
        wanted = sorted({row[len(prefix)] for row in ids if tuple(row[: len(prefix)]) == prefix})
        assert trie.children(prefix) == wanted
    for row in ids:
        assert trie.rows_of(row) == [k for k, other in enumerate(ids) if other == row]
        strange = [*row[:-1], 6]
        assert trie.rows_of(strange) == []
        assert trie.children(strange[-1:]) == []


def test_the_trie_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The file is the trie: plain arrays under their names."""
    table = random_table()
    export(table, tmp_path / "ids.trie.npz")
    trie = PrefixTrie.open(tmp_path / "ids.trie.npz")
    assert trie.children([]) == PrefixTrie.of(table.codes_array).children([])
    with np.load(tmp_path / "ids.trie.npz") as arrays:
        assert sorted(arrays.files) == ["codes", "indptr", "levels", "row_indptr", "rows"]
    np.savez(tmp_path / "bad.trie.npz", **{**trie.to_arrays(), "codes": np.zeros(3)})
    with pytest.raises(TableError, match="no trie"):
        PrefixTrie.open(tmp_path / "bad.trie.npz")


# --- decoding ---


class FakeTokenizer:
    """Numbers tokens as a tokenizer of transformers does, after a vocabulary of its own."""

    unk_token_id = 1

    def __init__(self, tokens: list[str], first: int = 10) -> None:
        self.numbers = {token: first + k for k, token in enumerate(tokens)}

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        return [self.numbers.get(token, self.unk_token_id) for token in tokens]


def test_a_tokenizer_without_the_tokens_is_named() -> None:
    """An unknown token would let every ID look alike."""
    tokenizer = FakeTokenizer(token_list((4, 4))[:-1])
    with pytest.raises(TableError, match=r"<b_3>.*add_tokens"):
        token_ids_of(tokenizer, (4, 4))


def sampled_with(decoding: object, tokens: list[np.ndarray], trie: PrefixTrie, rows: int, prompt: int) -> np.ndarray:
    """Sample sequences from random scores under a constraint, as `generate` does."""
    import torch

    torch.manual_seed(0)
    sequence = torch.zeros(rows, prompt, dtype=torch.int64)
    for _ in range(trie.levels + 1):
        scores = decoding(sequence, torch.randn(rows, 200))  # type: ignore[operator]
        chosen = torch.multinomial(scores.softmax(1), 1)
        sequence = torch.cat([sequence, chosen], 1)
    assert (sequence[:, -1] == 5).all()
    back = [{int(number): code for code, number in enumerate(level)} for level in tokens]
    return np.array([[back[at][int(row[prompt + at])] for at in range(trie.levels)] for row in sequence])


def test_a_thousand_sampled_sequences_are_all_items() -> None:
    """Without transformers: the processor is asked as `generate` asks it, and random scores choose."""
    table = random_table(items=120, codes=40)
    trie = PrefixTrie.of(table.codes_array)
    tokens = token_ids_of(FakeTokenizer(token_list(table.codebook_sizes)), table.codebook_sizes)
    processor = SemanticIdLogitsProcessor(trie, tokens, prompt_length=3, eos_token_id=5)
    found = sampled_with(processor, tokens, trie, 1000, 3)
    known = {tuple(row) for row in table.codes_array.tolist()}
    assert {tuple(row) for row in found.tolist()} <= known
    assert len({tuple(row) for row in found.tolist()}) > 30

    import torch

    one = prefix_allowed_tokens_fn(trie, tokens, prompt_length=3, eos_token_id=5)
    start = torch.zeros(3, dtype=torch.int64)
    assert one(0, start) == tokens[0][trie.children([])].tolist()
    first = torch.tensor([0, 0, 0, tokens[0][found[0][0]]])
    assert one(0, first) == tokens[1][trie.children([found[0][0]])].tolist()
    whole = torch.tensor([0, 0, 0, *(tokens[at][code] for at, code in enumerate(found[0]))])
    assert one(0, whole) == [5]
    assert one(0, torch.tensor([0, 0, 0, 199])) == [5]


def test_without_an_end_the_next_id_begins() -> None:
    """A model that writes lists of items needs no end after each."""
    import torch

    table = SemanticIdTable.from_mapping({1: [0, 1], 2: [1, 0]})
    trie = PrefixTrie.of(table.codes_array)
    tokens = [np.array([10, 11]), np.array([12, 13])]
    processor = SemanticIdLogitsProcessor(trie, tokens, prompt_length=1)
    open_at = [
        torch.isfinite(processor(torch.tensor([sequence]), torch.zeros(1, 20)))[0].nonzero().flatten().tolist()
        for sequence in ([0], [0, 10], [0, 10, 13], [0, 10, 13, 11])
    ]
    assert open_at == [[10, 11], [13], [10, 11], [12]]


def test_a_prompt_of_another_length_is_an_error_not_a_silence() -> None:
    """Without it the model would be steered by its prompt."""
    import torch

    table = SemanticIdTable.from_mapping({1: [0, 1], 2: [1, 0]})
    processor = SemanticIdLogitsProcessor(
        PrefixTrie.of(table.codes_array), [np.array([10, 11]), np.array([12, 13])], prompt_length=1, eos_token_id=5
    )
    with pytest.raises(TableError, match="length of the prompt"):
        processor(torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 20))
    with pytest.raises(TableError, match="resize_token_embeddings"):
        processor(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 13))


needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason='transformers is missing: pip install ".[hf]"'
)


@needs_transformers
@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.timeout(120)
@pytest.mark.parametrize("way", ["sample", "beams", "function", "encoder-decoder"])
def test_a_transformers_model_emits_nothing_but_items(way: str) -> None:
    """A tiny random model, which without the constraint would emit anything: 1,000 sequences, all of them items."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

    table = random_table(items=300, codes=30)
    trie = PrefixTrie.of(table.codes_array)
    tokens = token_ids_of(FakeTokenizer(token_list(table.codebook_sizes)), table.codebook_sizes)
    torch.manual_seed(0)
    vocabulary, prompt = 10 + sum(table.codebook_sizes), 4
    model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_positions=16, n_embd=16, n_layer=1, n_head=2))
    if way == "encoder-decoder":  # its output begins with one token of its own, not with the prompt
        prompt = 1
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        model = T5ForConditionalGeneration(T5Config(vocab_size=vocabulary, decoder_start_token_id=0, **sizes))
    model.eval()
    prompts = torch.randint(6, 10, (50, 4))
    options = {"prompt_length": prompt, "eos_token_id": 5}
    common = {"max_new_tokens": table.levels + 1, "pad_token_id": 0, "eos_token_id": 5, "num_return_sequences": 20}
    common["attention_mask"] = torch.ones_like(prompts)
    if way == "function":
        allowed = prefix_allowed_tokens_fn(trie, tokens, **options)
        out = model.generate(prompts, do_sample=True, prefix_allowed_tokens_fn=allowed, **common)
    else:
        processors = [SemanticIdLogitsProcessor(trie, tokens, **options)]
        search = {"num_beams": 20} if way == "beams" else {"do_sample": True}
        out = model.generate(prompts, logits_processor=processors, **search, **common)
    assert out.shape == (1000, prompt + table.levels + 1)
    assert (out[:, -1] == 5).all()
    back = [{int(number): code for code, number in enumerate(level)} for level in tokens]
    known = {tuple(row) for row in table.codes_array.tolist()}
    assert all(tuple(back[at][int(row[prompt + at])] for at in range(table.levels)) in known for row in out)
    free = model.generate(prompts, do_sample=True, **common)[:, prompt:]
    assert any(int(row[0]) not in back[0] for row in free)  # the constraint was needed


# --- elsewhere ---


class PairDataset:
    """A map-style dataset as one finds them: items and a matrix of their embeddings."""

    def __init__(self, item_ids: np.ndarray, embeddings: np.ndarray) -> None:
        self.item_ids = item_ids
        self.embeddings = embeddings

    def __len__(self) -> int:
        return len(self.item_ids)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray]:
        return int(self.item_ids[index]), self.embeddings[index]


class PairDatasetWithIds(PairDataset):
    """The descriptor and two lines: what the README shows."""

    semantic_id_dict = LazySemanticIds(data_dir=None, feature_ids="features", embeddings="vectors", config=SMALL)
    features = ("own",)

    @property
    def vectors(self) -> dict[str, dict[int, np.ndarray]]:
        return {"own": dict(zip(self.item_ids.tolist(), self.embeddings, strict=True))}


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_any_map_style_dataset_gets_the_attribute(kind: str) -> None:
    """(item_ids, embeddings) is all that a dataset needs to have, arrays or tensors."""
    import torch

    items, vectors = np.arange(60) + 500, vectors_of(60)
    dataset = (
        PairDatasetWithIds(items, vectors)
        if kind == "numpy"
        else PairDatasetWithIds(torch.from_numpy(items), torch.from_numpy(vectors))  # type: ignore[arg-type]
    )
    table = dataset.semantic_id_dict
    assert table.status == "trained"
    assert table.coverage(items) == 1.0
    assert len({tuple(row) for row in table.codes_array.tolist()}) == 60
    again = PairDatasetWithIds(items, vectors).semantic_id_dict
    assert again.status == "cached"
    assert again.digest == table.digest


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(st.dictionaries(st.text(max_size=8), st.lists(st.integers(0, 300), min_size=2, max_size=2), min_size=1))
def test_items_of_any_spelling_survive_every_format(tmp_path: Path, ids: dict[str, list[int]]) -> None:
    """Quotes, newlines, NUL, "007" and "7" at once: an item is its text."""
    table = SemanticIdTable.from_mapping(ids)
    for form in READABLE:
        path = tmp_path / f"ids{FORMATS[form].suffix}"
        assert same(read_export(export(table, path)[0]), table), form


# --- what others wrote ---


def test_codes_in_parquet_may_be_texts(tmp_path: Path) -> None:
    """As "217,163,130", beside items of any name that items have; lists may be of fixed size."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    codes = [[217, 163, 130], [1, 2, 3]]
    fixed = arrow.array(codes, arrow.list_(arrow.int32(), 3))
    for column in (["217,163,130", "1,2,3"], ["[217, 163, 130]", "[1, 2, 3]"], ["217 163 130", "1 2 3"], fixed):
        parquet.write_table(
            arrow.table({"parent_asin": ["a", "b"], "title": ["x", "y"], "codes": column}), tmp_path / "x.parquet"
        )
        assert read_export(tmp_path / "x.parquet").to_dict() == {"a": codes[0], "b": codes[1]}
    for texts, said in (
        (["1,2", "1,x"], "row 1: '1,x' is no list of codes"),
        (["1,2", "1,2,3"], "1 with 2, 1 with 3 codes"),
    ):
        parquet.write_table(arrow.table({"item_id": [1, 2], "codes": texts}), tmp_path / "x.parquet")
        with pytest.raises(TableError, match=said):
            read_export(tmp_path / "x.parquet")
    parquet.write_table(arrow.table({"title": ["a"], "codes": [[1]]}), tmp_path / "x.parquet")
    with pytest.raises(TableError, match="has the columns title, codes; wanted: item_id and codes"):
        read_export(tmp_path / "x.parquet")


@pytest.mark.parametrize("ending", [".parquet", ".npy", ".flat.npz", ".trie.npz"])
def test_a_file_of_ids_that_is_something_else_is_named(tmp_path: Path, ending: str) -> None:
    """As files of embeddings are."""
    (tmp_path / f"x{ending}").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(TableError, match="pointer of Git LFS"):
        read_export(tmp_path / f"x{ending}")


def test_arrays_without_their_items_say_how_to_give_them(tmp_path: Path) -> None:
    """As other tools leave them."""
    np.save(tmp_path / "x.npy", np.ones((3, 4), np.uint8))
    with pytest.raises(TableError, match=r"'x\.npy\.items\.json', the items .*, is missing\. Write them there"):
        read_export(tmp_path / "x.npy")
    (tmp_path / "x.npy.items.json").write_text("[4, 5, 6]")
    assert len(read_export(tmp_path / "x.npy")) == 3
