"""What a table says about itself is looked over before anything believes it."""

import base64
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semid_dataset import SemanticIdTable
from semid_dataset.config import Identity
from semid_dataset.errors import CorruptTableError, DigestError
from semid_dataset.format.tensors import serialize
from semid_dataset.table.build import TableData
from semid_dataset.table.header import Sketch, TableHeader

CODES = np.array([[1, 2], [3, 0]], np.uint8)
KEYS = {"keys": np.array([5, 6])}
SHA = "0123456789abcdef" * 4
HEADER = TableHeader(
    lineage="abcdefgh",
    generation=2,
    identity=Identity((16, 16), (("81", 8), ("own", 3)), "aligned"),
    settings={"unique": False, "seed": 3},
    quantizer={"kind": "residual", "dim": 8, "beam": 4},
    quality={"relative_mse": 0.25},
    provenance={"born": 1.5e9, "files": {"creative_emb/emb_81_8/part-0": SHA}, "variance": 2.0},
    behaviour=SHA,
    history=({"generation": 0, "items": 2, "new": 2}, {"generation": 2, "parent": SHA, "parent_json": SHA}),
    origins=("origin-of-it",),
    replaces=("an-older-one",),
    sketch=Sketch(np.array([3, 9], np.uint64), np.array([7, 0], np.uint64)),
    more={"later": [1, {"x": "y"}]},
)


def bytes_of(info: Any) -> bytes:
    """A table file that says anything, under a right checksum."""
    plain = TableData(np.array([5, 6]), CODES)
    return b"".join(serialize(plain.arrays, info))


def test_what_is_written_is_read_again() -> None:
    """Field by field, what a later version added included."""
    table = TableData(np.array([5, 6]), CODES, HEADER).in_memory("cached")
    read = table.header
    for name in ("lineage", "generation", "identity", "settings", "quantizer", "quality", "behaviour", "origins"):
        assert getattr(read, name) == getattr(HEADER, name), name
    assert (read.replaces, read.history, read.more) == (HEADER.replaces, HEADER.history, HEADER.more)
    assert read.sketch.items.tolist() == [3, 9]
    assert read.sketch.vectors.tolist() == [7, 0]
    assert (read.parent, read.scheme, read.unique) == (SHA, 2, False)
    assert read.digest == table.computed_digest
    json.dumps(table.info)


WRONG: dict[str, dict[str, Any]] = {
    "lineage": {"lineage": "../../victim/private"},
    "lineage of another kind": {"lineage": 7},
    "lineage with a slash": {"lineage": "abcdefgh/../x"},
    "lineage that is absolute": {"lineage": "/etc/passwd"},
    "lineage without end": {"lineage": "a" * 5000},
    "origins": {"origins": ["../x"]},
    "replaces": {"replaces": ["../x"]},
    "replaces of another kind": {"replaces": "abcdefgh"},
    "generation": {"generation": "x"},
    "generation below zero": {"generation": -1},
    "generation that is huge": {"generation": 10**12},
    "generation that is true": {"generation": True},
    "identity": {"identity": []},
    "identity.codebook_sizes": {"identity": {"codebook_sizes": [16, 1 << 40], "features": [], "fusion": "single"}},
    "identity.codebook_sizes, as many as levels": {"identity": {"codebook_sizes": [16] * 3}},
    "identity.features": {"identity": {"codebook_sizes": [16, 16], "features": [["../x", 8]]}},
    "identity.fusion": {"identity": {"codebook_sizes": [16, 16], "features": [], "fusion": 3}},
    "settings": {"settings": [1]},
    "settings.unique": {"settings": {"unique": "no"}},
    "quantizer": {"quantizer": 3},
    "quantizer.kind": {"quantizer": {"kind": 3}},
    "quality": {"quality": 7},
    "quality, NaN": {"quality": {"relative_mse": float("nan")}},
    "quality, infinite": {"quality": {"relative_mse": [[float("inf")]]}},
    "provenance.born": {"provenance": {"born": "yesterday"}},
    "provenance.files": {"provenance": {"files": ["a"]}},
    "provenance.variance": {"provenance": {"variance": 1 << 2000}},
    "behaviour": {"behaviour": "yes", "layout": 2},
    "history": {"history": [7]},
    "history.parent": {"history": [{"parent": "x"}]},
    "history.generation": {"history": [{"generation": "x"}]},
    "digest": {"digest": "x"},
    "json_sha256": {"json_sha256": ["x"]},
    "sketch": {"sketch": [1]},
    "sketch, no base64": {"sketch": {"items": "?", "vectors": ""}},
    "sketch, odd bytes": {"sketch": {"items": base64.b64encode(b"abc").decode(), "vectors": ""}},
    "sketch, not in order": {"sketch": Sketch(np.array([9, 3], np.uint64), np.zeros(2, np.uint64)).to_json()},
    "sketch, too long": {"sketch": {"items": "A" * 100_000, "vectors": ""}},
    "text without end": {"quality": {"x": "y" * 100_000}},
}


@pytest.mark.parametrize("name", WRONG)
def test_anything_else_is_an_error_that_names_the_field(name: str) -> None:
    """Before a path, a size or a figure is made of it."""
    with pytest.raises(CorruptTableError, match=name.split(",", maxsplit=1)[0].split(" ", maxsplit=1)[0]):
        SemanticIdTable.from_buffer(bytes_of(WRONG[name]))


def test_depth_is_bounded() -> None:
    """A header of a thousand brackets is no header."""
    nested: Any = []
    for _ in range(100):
        nested = [nested]
    with pytest.raises(CorruptTableError, match="deep"):
        SemanticIdTable.from_buffer(bytes_of({"quality": {"x": nested}}))


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(st.sampled_from(sorted(TableHeader().__dataclass_fields__)), ANY, max_size=6))
def test_no_header_ends_in_another_error(info: dict[str, Any]) -> None:
    """A table of anybody's, or CorruptTableError."""
    try:
        header = TableHeader.from_json(json.loads(json.dumps(info)), "t", 2)
    except CorruptTableError:
        return
    again = TableHeader.from_json(json.loads(json.dumps(header.to_json())), "t", 2)
    assert again.lineage == header.lineage
    assert again.history == header.history


# --- tables of the first layout ---


def test_tables_of_the_first_layout_are_read() -> None:
    """What they lack is derived: the quantizer's kind, and behaviour where it was noted."""
    info = {
        "lineage": "abcdefgh",
        "generation": 0,
        "identity": {"codebook_sizes": [16, 16], "features": [["81", 8]], "fusion": "single"},
        "quantizer": {"dim": 8, "fusion": {"kind": "metric"}},
        "provenance": {"files": {"sequences": SHA}},
        "digest": SHA,
        "json_sha256": SHA,
    }
    header = TableHeader.from_json(info, "t", 2)
    assert (header.layout, header.scheme, header.behaviour, header.digest) == (1, 1, SHA, SHA)
    assert header.child({"generation": 1}).to_json()["quantizer"]["kind"] == "residual"
    assert len(header.sketch) == 0


def test_a_part_called_sequences_is_no_behaviour() -> None:
    """Nor in tables of the first layout, where no fusion was learned from behaviour."""
    info = {"quantizer": {"dim": 8, "fusion": None}, "provenance": {"files": {"sequences": SHA}}}
    assert TableHeader.from_json(info, "t").behaviour == ""
    assert TableHeader.from_json({**info, "layout": 2}, "t").behaviour == ""


def test_a_digest_of_the_first_scheme_is_not_taken_for_one_of_the_second() -> None:
    """A writer of the first layout copies what it does not know, and puts a digest of its own in place."""
    info = TableData(np.array([5, 6]), CODES, HEADER).in_memory("cached").info
    assert TableHeader.from_json(info, "t").scheme == 2
    assert TableHeader.from_json({**info, "digest": SHA}, "t").scheme == 1


# --- growing ---


def test_a_child_names_the_digest_of_what_it_grew_from() -> None:
    """That is the chain; where it is a branch, it names where it comes from."""
    base = TableData(np.array([5, 6]), CODES, replace(HEADER, history=(), origins=())).in_memory("cached")
    child = base.header.child({"generation": 3})
    assert (child.parent, child.generation, child.lineage, child.origins) == (base.digest, 3, "abcdefgh", ())
    assert child.grew_from(base.digest)
    assert child.exported(base.header.json_sha256)
    branch = base.header.child({"generation": 3}, lineage="another-name")
    assert (branch.lineage, branch.origins) == ("another-name", ("abcdefgh",))
    assert not base.header.grew_from("")
    assert not base.header.exported("")


# --- digests ---


def lying(table: SemanticIdTable, codes: np.ndarray) -> bytes:
    """Other IDs under the header of a table."""
    other = TableData(table.keys_array, codes, table.header, table.weights)
    return b"".join(serialize(other.arrays, table.info))


def test_a_file_that_states_the_digest_of_another_is_found_out(tmp_path: Path) -> None:
    """What is compared is computed."""
    table = TableData(np.array([5, 6]), CODES, HEADER).in_memory("cached")
    table.assert_same_digest(table.digest)
    (tmp_path / "t").write_bytes(lying(table, CODES + np.uint8(1)))
    liar = SemanticIdTable.open(tmp_path / "t")
    assert liar.digest == table.digest
    assert liar.computed_digest != table.digest
    with pytest.raises(DigestError, match=table.digest):
        liar.assert_same_digest(table.digest)


def test_a_pickle_is_not_fooled_by_a_file_that_states_its_digest(tmp_path: Path) -> None:
    """The worker opens what lies there now."""
    import pickle

    path = TableData(np.array([5, 6]), CODES, HEADER).in_memory("cached").save(tmp_path / "t.safetensors")
    table = SemanticIdTable.open(path)
    sent = pickle.dumps(table)
    content = lying(table, CODES + np.uint8(1))
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(CorruptTableError, match="other IDs"):
        len(pickle.loads(sent))


def test_a_digest_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever compares in a loop pays once."""
    table = TableData(np.array([5, 6]), CODES, HEADER).in_memory("cached")
    module = sys.modules["semid_dataset.table.table"]
    calls = []
    real = module.content_digests  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "content_digests", lambda *args: calls.append(1) or real(*args))
    for _ in range(3):
        table.assert_same_digest(table.digest)
        table.with_status("stale", "").assert_same_digest(table.digest)
    assert len(calls) <= 2


def test_what_a_table_of_the_first_layout_states_is_held_against_its_content() -> None:
    """Whoever noted its digest then may compare it now; a computed one of the second scheme says the same."""
    data = TableData(np.array([5, 6]), CODES, HEADER)
    from semid_dataset.table.build import content_digests

    first, second = content_digests(data.arrays, HEADER)
    info = {key: value for key, value in data.in_memory("cached").info.items() if key != "digest_scheme"}
    old = SemanticIdTable.from_buffer(b"".join(serialize(data.arrays, {**info, "digest": first})))
    old.assert_same_digest(first)
    old.assert_same_digest(second)
    with pytest.raises(DigestError):
        data.in_memory("cached").assert_same_digest(first)
