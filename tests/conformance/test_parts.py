"""Our own parts, and those of a stranger, under the very suites that strangers subclass."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from strangers import Csv, Lines, Product, ProductTrainer

from semid_dataset import exports
from semid_dataset.build.streaming.executors import run_here, run_processes
from semid_dataset.codec._codebooks import RQKMeans
from semid_dataset.codec._faiss import Faiss
from semid_dataset.codec._rqvae import RQVAE
from semid_dataset.inputs.formats import FORMATS
from semid_dataset.protocols import Executor, Exporter, Format, Trainer
from semid_dataset.registry import QUANTIZERS
from semid_dataset.testing import ExecutorTests, ExporterTests, FormatTests, QuantizerTests


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Announce the stranger's parts, as entry points would."""
    for registry, name, part in ((QUANTIZERS, "product", Product), (FORMATS, "lines", Lines())):
        monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))
        registry.add(name, part)


# --- quantizers ---


class TestRQKMeans(QuantizerTests):
    def trainer(self) -> Trainer:
        return RQKMeans()


class TestRQVAE(QuantizerTests):
    """Two epochs: what the networks learn is not asked here."""

    def trainer(self) -> Trainer:
        return RQVAE(num_epochs=2)


class TestUnevenLevels(QuantizerTests):
    sizes: ClassVar[tuple[int, ...]] = (2, 300)
    dim: ClassVar[int] = 3

    def trainer(self) -> Trainer:
        return RQKMeans()


class TestFaiss(QuantizerTests):
    def trainer(self) -> Trainer:
        pytest.importorskip("faiss", reason="faiss is not installed: the extra 'faiss'")
        return Faiss()


class TestProduct(QuantizerTests):
    def trainer(self) -> Trainer:
        return ProductTrainer()


# --- formats ---


class TestParquet(FormatTests):
    def format(self) -> Format:
        return FORMATS.get("parquet")

    def write(self, path: Path, items: list[Any], vectors: NDArray[np.float32]) -> None:
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        flat = arrow.array(vectors.reshape(-1))
        column = arrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        parquet.write_table(arrow.table({"item_id": items, "embedding": column}), path, row_group_size=5)


class TestJsonLines(FormatTests):
    def format(self) -> Format:
        return FORMATS.get("jsonl")

    def write(self, path: Path, items: list[Any], vectors: NDArray[np.float32]) -> None:
        rows = [{"item_id": item, "embedding": row.tolist()} for item, row in zip(items, vectors, strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class TestNames(TestJsonLines):
    def items(self) -> list[Any]:
        return [f"B0{number:03}" for number in range(25)]


class TestLines(FormatTests):
    def format(self) -> Format:
        return Lines()

    def write(self, path: Path, items: list[Any], vectors: NDArray[np.float32]) -> None:
        lines = [" ".join([str(item), *map(repr, row.tolist())]) for item, row in zip(items, vectors, strict=True)]
        path.write_text("\n".join(lines))


# --- exporters ---


class TestJson(ExporterTests):
    def exporter(self) -> Exporter:
        return exports.FORMATS["json"]


class TestIndex(ExporterTests):
    def exporter(self) -> Exporter:
        return exports.FORMATS["index"]


class TestExportedParquet(ExporterTests):
    def exporter(self) -> Exporter:
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        return exports.FORMATS["parquet"]


class TestArray(ExporterTests):
    def exporter(self) -> Exporter:
        return exports.FORMATS["npy"]


class TestFlat(ExporterTests):
    def exporter(self) -> Exporter:
        return exports.FORMATS["flat"]


class TestTrie(ExporterTests):
    def exporter(self) -> Exporter:
        return exports.FORMATS["trie"]


class TestTokens(ExporterTests):
    reads: ClassVar[bool] = False

    def exporter(self) -> Exporter:
        return exports.FORMATS["tokens"]


class TestCsv(ExporterTests):
    def exporter(self) -> Exporter:
        return Csv()


# --- executors ---


class TestHere(ExecutorTests):
    def executor(self) -> Executor:
        return run_here


class TestProcesses(ExecutorTests):
    def executor(self) -> Executor:
        return run_processes


class TestBackwards(ExecutorTests):
    """Tasks need no order."""

    def executor(self) -> Executor:
        def backwards(folder: Path, tasks: Sequence[Any], progress: Any, limit: int) -> None:
            run_here(folder, list(reversed(tasks)), progress, limit)

        return backwards
