"""A URL is refused wherever a path is named: nothing is written to a local folder called "s3:"."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from world import SmallDataset, make_data

from semid_dataset import (
    LazySemanticIds,
    ResidualQuantizer,
    SemanticIdConfig,
    SemanticIdTable,
    SemidError,
    generate_from_vectors,
    generate_semantic_ids,
    generate_semantic_ids_on_demand,
)
from semid_dataset.cli._app import run
from semid_dataset.exports import export, read_export
from semid_dataset.report import write_report

URL = "s3://bucket/folder/semid_table.safetensors"
TABLE = SemanticIdTable.from_mapping({1: [1, 2], 2: [2, 1]})
VECTORS = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
QUICK = SemanticIdConfig(num_quantizers=2, codebook_size=8, algorithm="rqkmeans")

DOORS: dict[str, Callable[[], object]] = {
    "save": lambda: TABLE.save(URL),
    "save, a Path": lambda: TABLE.save(Path(URL)),
    "open": lambda: SemanticIdTable.open(URL),
    "export": lambda: export(TABLE, "gs://bucket/ids.index.json"),
    "read_export": lambda: read_export("hdfs://name/ids.parquet"),
    "report": lambda: write_report(TABLE, "https://host/report.html"),
    "from_pretrained": lambda: ResidualQuantizer.from_pretrained(URL),
    "generate_from_vectors": lambda: generate_from_vectors(range(40), VECTORS, output_dir=URL, config=QUICK),
    "generate_semantic_ids": lambda: generate_semantic_ids(URL, ["81"]),
    "cache_dir": lambda: LazySemanticIds(cache_dir=URL),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("door", DOORS)
def test_a_url_is_refused(door: str, tmp_path: Path) -> None:
    """The sentence says what to do, and nothing was made."""
    with pytest.raises(SemidError, match="is a URL"):
        DOORS[door]()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [["-o", URL], ["-o", "gs://x/y"]])
def test_a_command_is_called_wrongly_with_a_url(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends with 2 before anything is read."""
    np.save(tmp_path / "x.npy", VECTORS)
    (tmp_path / "ids.txt").write_text("\n".join(map(str, range(40))))
    assert run(["generate", "x.npy", "--ids", "ids.txt", *options]) == 2
    assert "is a URL" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.txt", "x.npy"]


def test_a_cache_named_by_a_url_is_passed_over_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next folder serves."""
    data = make_data(tmp_path / "data")
    monkeypatch.setenv("SEMID_CACHE_DIR", "s3://bucket/cache")
    table = SmallDataset(data).semantic_id_dict
    assert table.status == "trained"
    assert "s3://bucket/cache" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.filterwarnings("ignore::semid_dataset.errors.SemanticIdWarning")
def test_the_original_function_answers_with_default_ids() -> None:
    """It never raises."""
    answer = generate_semantic_ids_on_demand("s3://bucket/data", ["81"])
    assert answer.status == "default"
    assert "is a URL" in answer.reason


@pytest.mark.parametrize("name", ["a:b/c", "C:/x", "s3", "10:30/x"])
def test_ordinary_names_with_colons_are_paths(name: str, tmp_path: Path) -> None:
    """One letter before the colon is a drive, a number no scheme."""
    assert TABLE.save(tmp_path / name / "t.safetensors").exists()
    if not name.startswith("a:"):
        assert TABLE.save(name + "/t.safetensors").exists()
