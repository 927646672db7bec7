"""Catalogues for engines that decode over them."""

import json
from pathlib import Path

import numpy as np
import pytest

from semid_dataset import SemanticIdTable
from semid_dataset.codec.residual import ResidualQuantizer
from semid_dataset.errors import ConfigError, TableError
from semid_dataset.exports import export, format_of, read_export, token_ids_of

IDS = {7: [1, 2, 0], 9: [0, 3, 3], 12: [1, 2, 0], 30: [0, 0, 1]}


@pytest.mark.parametrize("suffix", [".catalog.json", ".sid.jsonl"])
@pytest.mark.parametrize("ids", [IDS, {f"p{item}": codes for item, codes in IDS.items()}])
def test_what_is_written_is_read(suffix: str, ids: dict[int | str, list[int]], tmp_path: Path) -> None:
    """Of items that are numbers or names, some of which share an ID."""
    export(SemanticIdTable.from_mapping(ids, codebook_sizes=4), tmp_path / f"x{suffix}")
    assert read_export(tmp_path / f"x{suffix}", codebook_sizes=4).to_dict() == ids


def test_a_catalogue_is_in_the_order_of_ids(tmp_path: Path) -> None:
    export(SemanticIdTable.from_mapping(IDS, codebook_sizes=4), tmp_path / "x.catalog.json")
    text = (tmp_path / "x.catalog.json").read_text()
    assert text == '{"0,0,1":[30],"0,3,3":[9],"1,2,0":[7,12]}'
    export(SemanticIdTable.from_mapping({}, codebook_sizes=4), tmp_path / "x.catalog.json")
    assert json.loads((tmp_path / "x.catalog.json").read_text()) == {}


def test_token_ids_follow_a_vocabulary(tmp_path: Path) -> None:
    """Levels one after the other, from the first number on."""
    export(SemanticIdTable.from_mapping(IDS, codebook_sizes=4), tmp_path / "x.sid.jsonl", first=100)
    first = json.loads((tmp_path / "x.sid.jsonl").read_text().splitlines()[0])
    assert first == {"item_id": 7, "token_ids": [101, 106, 108], "metadata": {"codes": [1, 2, 0]}}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("x.catalog.json", "[1]", "wanted codes"),
        ("x.catalog.json", '{"1,x":[7]}', "1,x"),
        ("x.catalog.json", '{"1,2":7}', "list of items"),
        ("x.catalog.json", '{"1,2":[7],"1,3":[7]}', "another ID"),
        ("x.catalog.json", '{"1,2":[[7]]}', "no item"),
        ("x.catalog.json", "{", "no valid JSON"),
        ("x.sid.jsonl", '{"item_id":7,"token_ids":[5,6]}', "line 1"),
        ("x.sid.jsonl", "7", "line 1"),
        ("x.sid.jsonl", '{"item_id":7,"metadata":{"codes":[1]}}\n{"item_id":7,"metadata":{"codes":[2]}}', "line 2"),
        ("x.sid.jsonl", '{"item_id":[7],"metadata":{"codes":[1]}}', "line 1"),
        ("x.sid.jsonl", '{"item_id":7,"metadata":{"codes":"12"}}', "7"),
    ],
)
def test_another_file_is_refused(name: str, text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(TableError, match=says):
        read_export(tmp_path / name, codebook_sizes=4)


@pytest.mark.parametrize(("tokenizer", "sizes"), [(7, [4]), (None, [4]), (object(), [4]), (object(), None), (7, "ab")])
def test_what_is_no_tokenizer_is_refused(tokenizer: object, sizes: object) -> None:
    with pytest.raises(TableError):
        token_ids_of(tokenizer, sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", [7, None, ["x.json"], "x.nothing"])
def test_what_names_no_format_is_refused(path: object) -> None:
    assert format_of("x.json").name == "json"
    with pytest.raises(ConfigError):
        format_of(path, None)  # type: ignore[arg-type]


def test_token_vectors_add_up_to_what_is_decoded() -> None:
    import torch

    random = torch.Generator().manual_seed(0)
    books = [torch.randn(4, 3, generator=random) for _ in range(2)]
    one = ResidualQuantizer(books, mean=torch.ones(3), scale=2.0)
    vectors = one.token_vectors()
    codes = np.array([[1, 3], [0, 2]])
    summed = vectors[0][codes[:, 0]] + vectors[1][codes[:, 1]] + 1
    np.testing.assert_allclose(one.decode(codes), summed, rtol=1e-6)
