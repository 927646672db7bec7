"""How many codes a level has is stated, or taken for one power of two and said; never for what occurs today."""

import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from world import SMALL, SmallMixinDataset, make_data

from semid_dataset import LazySemanticIds, SemanticIdConfig, SemanticIdTable
from semid_dataset.errors import ConfigError, TableError
from semid_dataset.exports import FORMATS, export, flat_ids, read_export

IDS = {f"item{k}": codes for k, codes in enumerate([[249, 0, 17], [3, 239, 200], [7, 42, 255]])}
OFFSET = [7, 305, 603]  # of [7, 49, 91] in levels of 256 that stand side by side


def hand_made(folder: Path) -> Path:
    """An LC-Rec style index and a JSON of IDs."""
    (folder / "semantic_id_dict.json").write_text(json.dumps(IDS))
    spelled = {item: [f"<{'abc'[level]}_{code}>" for level, code in enumerate(codes)] for item, codes in IDS.items()}
    (folder / "item.index.json").write_text(json.dumps(spelled))
    return folder


@pytest.mark.parametrize("name", ["semantic_id_dict.json", "item.index.json"])
def test_sizes_are_rounded_up_together_and_said(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The largest codes are 249, 239 and 255: readers with 256 want offsets, tokens and embedding tables of 256."""
    table = read_export(hand_made(tmp_path) / name)
    assert table.codebook_sizes == (256, 256, 256)
    assert not table.sizes_stated
    assert "the largest are 249/239/255, so 256 are assumed" in caplog.text
    assert table.embedding_table_sizes() == (257, 257, 257)
    assert flat_ids(np.array([[7, 49, 91]]), table.codebook_sizes, first=0).tolist() == [OFFSET]
    tokens = json.loads(export(table, tmp_path / "item.tokens.json")[0].read_text())
    assert len(tokens) == 768


@pytest.mark.parametrize(("largest", "size"), [(0, 2), (1, 2), (2, 4), (255, 256), (256, 512), (65_535, 65_536)])
def test_the_power_of_two_holds_every_code_and_no_more(largest: int, size: int) -> None:
    """One more item changes nothing, unless it needs another size."""
    table = SemanticIdTable.from_mapping({1: [0, largest], 2: [1, 0]} if largest else {1: [0, 0]})
    assert table.codebook_sizes == (size, size)


def test_stated_sizes_are_believed_wherever_ids_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One number or one a level; they stay with the table through a file and a pickle, and nothing is guessed."""
    hand_made(tmp_path)
    tables = [
        SemanticIdTable.from_mapping(IDS, codebook_sizes=(250, 256, 300)),
        read_export(tmp_path / "item.index.json", codebook_sizes=[250, 256, 300]),
        read_export(tmp_path / "semantic_id_dict.json", codebook_sizes=np.array([250, 256, 300])),
    ]
    for table in tables:
        kept = SemanticIdTable.open(table.save(tmp_path / "kept.safetensors"))
        for one in (table, kept, pickle.loads(pickle.dumps(table)), pickle.loads(pickle.dumps(kept))):
            assert (one.codebook_sizes, one.sizes_stated) == ((250, 256, 300), True)
    assert SemanticIdTable.from_mapping(IDS, codebook_sizes=512).codebook_sizes == (512, 512, 512)
    assert "assumed" not in caplog.text
    plain = SemanticIdTable.from_mapping(IDS).save(tmp_path / "plain.safetensors")
    opened = SemanticIdTable.open(plain, codebook_sizes=300)
    for one in (
        opened,
        pickle.loads(pickle.dumps(opened)),
        SemanticIdTable.open(opened.save(tmp_path / "more.safetensors")),
    ):
        assert (one.codebook_sizes, one.digest) == ((300, 300, 300), SemanticIdTable.open(plain).digest)


@pytest.mark.parametrize(
    ("sizes", "error", "words"),
    [
        ((256, 256), ConfigError, "2 entries"),
        ((256, 200, 256), TableError, "the code 239 at level 1"),
        (0, ConfigError, "whole numbers from 1"),
        (True, ConfigError, "whole numbers"),
        ("256", ConfigError, "a number, or one per level"),
        ([256, 256, 2.5], ConfigError, "whole numbers"),
        (1 << 20, ConfigError, "65536"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes: object, error: type[Exception], words: str) -> None:
    """Naming what is wrong."""
    with pytest.raises(error, match=words):
        SemanticIdTable.from_mapping(IDS, codebook_sizes=sizes)  # type: ignore[arg-type]


def test_a_file_that_states_its_sizes_is_right(tmp_path: Path) -> None:
    """Flat ids, our parquet, a trained table: others are refused, the same are no harm."""
    pytest.importorskip("pyarrow")
    table = SemanticIdTable.from_mapping(IDS, codebook_sizes=(250, 256, 300))
    for form in ("flat", "parquet"):
        path = export(table, tmp_path / f"x{FORMATS[form].suffix}")[0]
        assert read_export(path).codebook_sizes == (250, 256, 300)
        assert read_export(path, codebook_sizes=(250, 256, 300)).sizes_stated
        with pytest.raises(ConfigError, match="states"):
            read_export(path, codebook_sizes=256)
    with pytest.raises(ConfigError, match="states that its levels"):
        table.with_sizes(256)


def test_a_hand_made_file_has_the_sizes_that_the_dataset_configures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where its IDs fit them, now and from the cache; else they are rounded, and said."""
    data = make_data(tmp_path / "data", 60)
    (data / "semantic_id_dict.json").write_text(json.dumps({"5": [1, 2, 3], "6": [7, 0, 1]}))
    for _ in range(2):
        table = SmallMixinDataset(data).prepare_semantic_ids(config=SMALL)
        assert (table.status, table.codebook_sizes, table.sizes_stated) == ("pregenerated", (16, 16, 16), True)
    assert "assumed" not in caplog.text
    (data / "semantic_id_dict.json").write_text(json.dumps({"5": [1, 2, 99], "6": [7, 0, 1]}))
    with caplog.at_level(logging.WARNING):
        table = SmallMixinDataset(data).prepare_semantic_ids(config=SMALL)
    assert (table.codebook_sizes, table.sizes_stated) == ((128, 128, 128), False)
    assert "128 are assumed" in caplog.text


def test_an_assigned_mapping_has_the_sizes_that_the_dataset_configures(caplog: pytest.LogCaptureFixture) -> None:
    """The original's loader assigns a dict."""

    class Data:
        semantic_id_dict = LazySemanticIds(config=SemanticIdConfig(num_quantizers=2, codebook_size=(32, 64)))

    dataset = Data()
    dataset.semantic_id_dict = {1: [3, 4]}  # type: ignore[assignment]
    assert dataset.semantic_id_dict.codebook_sizes == (32, 64)
    dataset.semantic_id_dict = {1: [3, 64]}  # type: ignore[assignment]
    assert dataset.semantic_id_dict.codebook_sizes == (128, 128)
    assert "so 128 are assumed" in caplog.text


def test_the_command_line_takes_and_says_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--codebook-size`; without, `info` says that they were taken for something."""
    pytest.importorskip("click")
    from semid_dataset.cli._app import run

    hand_made(tmp_path)
    index, tokens = str(tmp_path / "item.index.json"), tmp_path / "t.tokens.json"
    assert run(["info", index]) == 0
    assert "3 levels of 256/256/256 codes (taken for that" in capsys.readouterr().out
    assert run(["info", index, "--codebook-size", "250,240,300"]) == 0
    assert "3 levels of 250/240/300 codes\n" in capsys.readouterr().out
    assert run(["export", index, "-o", str(tokens), "--codebook-size", "300"]) == 0
    assert len(json.loads(tokens.read_text())) == 900
    assert run(["export", index, "-o", str(tokens)]) == 0
    assert len(json.loads(tokens.read_text())) == 768
    assert run(["verify", index, "--codebook-size", "many"]) == 2
    assert run(["verify", index, "--codebook-size", "100"]) == 1
    assert "the code 249" in capsys.readouterr().out


def test_new_items_alone_are_exported_with_the_sizes_of_their_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`semid encode -o item.tokens.json` of few items: all tokens, not those up to the largest code of these."""
    pytest.importorskip("click")
    from world import vectors_of

    from semid_dataset import generate_from_vectors
    from semid_dataset.cli._app import run

    config = SemanticIdConfig(num_quantizers=3, codebook_size=16, algorithm="rqkmeans", device="cpu")
    generate_from_vectors(range(80), vectors_of(90)[:80], output_dir=tmp_path / "made", config=config)
    np.savez(tmp_path / "new.npz", items=np.arange(80, 83), embeddings=vectors_of(90)[80:83])
    line = ["encode", str(tmp_path / "made"), str(tmp_path / "new.npz"), "-o", str(tmp_path / "x.tokens.json")]
    assert run(line) == 0, capsys.readouterr().err
    assert len(json.loads((tmp_path / "x.tokens.json").read_text())) == 48
