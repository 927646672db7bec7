"""Tables are checked and compared by functions that know nothing of a command line."""

import subprocess
import sys
from pathlib import Path

import pytest
from world import vectors_of

from semid_dataset import SemanticIdConfig, SemanticIdTable, generate_from_vectors
from semid_dataset.api import own_embeddings
from semid_dataset.check import diff_tables, verify_table
from semid_dataset.errors import ConfigError, EmbeddingError
from semid_dataset.table.table import build_table_buffers

SMALL = SemanticIdConfig(num_quantizers=3, codebook_size=16, algorithm="rqkmeans", device="cpu")
ITEMS = list(range(500, 580))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SemanticIdTable:
    """A table of 80 items that nobody changes."""
    folder = tmp_path_factory.mktemp("made")
    return generate_from_vectors(ITEMS, vectors_of(80), output_dir=folder, config=SMALL)


def test_a_table_as_it_was_made_is_fine_alone_and_beside_its_vectors(made: SemanticIdTable) -> None:
    """What the functions return can be written as JSON and read by programs."""
    alone = verify_table(made)
    assert alone.ok
    assert alone.vectors is None
    found = verify_table(made, own_embeddings(ITEMS, vectors_of(80)))
    assert found.ok
    assert found.vectors is not None
    assert found.vectors.coverage == 1.0
    assert found.vectors.reproduced == 1 - found.vectors.moved / 80
    assert found.to_dict()["embeddings"]["relative_mse"] == pytest.approx(made.quality["relative_mse"])


def test_what_is_wrong_is_returned_and_not_raised(made: SemanticIdTable, tmp_path: Path) -> None:
    """Other vectors, items without an ID, an ID that two share."""
    turned = verify_table(made, own_embeddings(ITEMS, vectors_of(80)[::-1] * 3))
    assert not turned.ok
    assert "not those of these items" in turned.problems[0]
    more = verify_table(made, own_embeddings(range(500, 590), vectors_of(90)))
    assert "10 items with vectors have no ID" in more.problems
    codes = made.codes_array.copy()
    codes[:2] = [[1, 2, 3], [0, 0, 0]]
    codes[2] = codes[0]
    path = tmp_path / "forged.safetensors"
    path.write_bytes(b"".join(build_table_buffers(made.keys_array, codes, info=dict(made.info), weights=made.weights)))
    forged = verify_table(SemanticIdTable.open(path))
    assert forged.shared >= 2
    assert forged.zero_ids == 1
    assert any("share an ID although" in problem for problem in forged.problems)


def test_what_does_not_go_together_raises(made: SemanticIdTable) -> None:
    """Sequences without vectors, or for a table made without; vectors of another width."""
    vectors = own_embeddings(ITEMS, vectors_of(80))
    with pytest.raises(ConfigError, match="give both"):
        verify_table(made, sequences=[[500, 501]])
    with pytest.raises(ConfigError, match="made without sequences"):
        verify_table(made, vectors, sequences=[[500, 501]])
    with pytest.raises(EmbeddingError, match=r"8"):
        verify_table(made, own_embeddings(ITEMS, vectors_of(80, dim=5)))


def test_two_tables_are_compared_item_by_item(made: SemanticIdTable) -> None:
    """Moved, came, went; of another number of levels every ID has moved; string keys too."""
    old = SemanticIdTable.from_mapping({"a": [1, 1], "b": [2, 2], "c": [3, 3]})
    new = SemanticIdTable.from_mapping({"a": [1, 1], "b": [2, 9], "d": [4, 4]})
    found = diff_tables(old, new)
    assert (found.unchanged, dict(found.moved)) == (1, {"b": ([2, 2], [2, 9])})
    assert (found.added, found.removed, found.harmless) == (("d",), ("c",), False)
    assert diff_tables(made, made).harmless
    longer = SemanticIdTable.from_mapping({"a": [1, 1, 0]})
    assert diff_tables(longer, old).moved == {"a": ([1, 1, 0], [1, 1])}


def test_the_module_knows_no_command_line() -> None:
    """It works where click is not installed, and importing it loads no torch."""
    code = "import sys; sys.modules['click'] = None; import semid_dataset.check; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
