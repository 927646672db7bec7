"""A check of the checks: every test of the suites is failed by a part that does that one thing wrong."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from strangers import Csv, Lines, Product, ProductTrainer

from semid_dataset import SemanticIdTable
from semid_dataset.build.streaming.executors import run_here
from semid_dataset.inputs.formats import FORMATS
from semid_dataset.protocols import Partition, Sink, Trained
from semid_dataset.registry import QUANTIZERS
from semid_dataset.testing import ExecutorTests, ExporterTests, FormatTests, QuantizerTests


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (QUANTIZERS, FORMATS):
        monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))


def failed(suite: Any, folder: Path) -> set[str]:
    """Return the names of the tests of a suite that fail."""
    names = set()
    for name, test in inspect.getmembers(suite, inspect.ismethod):
        if name.startswith("test_"):
            place = folder / name
            place.mkdir()
            try:
                test(place) if "tmp_path" in inspect.signature(test).parameters else test()
            except Exception:
                names.add(name)
    return names


# --- quantizers ---


class Forgetful(Product):
    """Its state leaves an array out that it then makes up."""

    def to_state(self) -> Any:
        arrays, config = super().to_state()
        return {**arrays, "extra": np.zeros(3)}, config


class Hasty(Product):
    """Codes depend on the batch."""

    def encode(self, vectors: Any) -> Any:
        return super().encode(np.asarray(vectors) - np.mean(vectors, 0) if len(vectors) else vectors)


class Floating(Product):
    def encode(self, vectors: Any) -> Any:
        return super().encode(vectors).astype(np.float32)


class Doubled(Product):
    def decode(self, codes: Any) -> Any:
        return super().decode(codes).astype(np.float64)


class Blind(Product):
    """Decodes whole IDs only."""

    def decode(self, codes: Any) -> Any:
        if codes.shape[1] < len(self.words):
            raise ValueError("whole IDs only")
        return super().decode(codes)


class Backwards(Product):
    def distances(self, vectors: Any, prefix_codes: Any) -> Any:
        return -super().distances(vectors, prefix_codes)


class Relative(Product):
    """Distances depend on the rows beside."""

    def distances(self, vectors: Any, prefix_codes: Any) -> Any:
        found = super().distances(vectors, prefix_codes)
        return found - found.mean()


class Unread(Product):
    """What it reads is not what it wrote."""

    @classmethod
    def from_state(cls, arrays: Mapping[str, Any], config: Mapping[str, Any]) -> "Product":
        return cls(tuple(np.array(arrays[f"words{level}"])[::-1] for level in range(config["levels"])))


@dataclasses.dataclass(frozen=True)
class Broken(ProductTrainer):
    """A trainer that makes another kind of product quantizer."""

    made: type[Product] = Product

    def fit(self, vectors: Any, **asked: Any) -> Trained:
        trained: Any = super().fit(vectors, **asked)
        return Trained(self.made(trained.quantizer.words))


class Random(Broken):
    def fit(self, vectors: Any, **asked: Any) -> Trained:
        return super().fit(vectors, **{**asked, "seed": int(np.random.randint(1 << 30))})


class Silent(Broken):
    def fit(self, vectors: Any, *, progress: Any, **asked: Any) -> Trained:
        return super().fit(vectors, progress=type(progress)(), **asked)


class Loose:
    """Neither frozen nor a dataclass."""

    name: ClassVar[str] = "loose"
    fit = ProductTrainer.fit
    rounds = 2


@pytest.mark.parametrize(
    ("trainer", "test"),
    [
        (Broken(made=Forgetful), "test_a_damaged_state_is_refused"),
        (Broken(made=Hasty), "test_a_vector_has_its_codes_in_any_company"),
        (Broken(made=Floating), "test_codes_are_whole_numbers_below_the_sizes"),
        (Broken(made=Doubled), "test_codes_stand_for_vectors_near_the_items"),
        (Broken(made=Blind), "test_codes_stand_for_vectors_near_the_items"),
        (Broken(made=Backwards), "test_distances_are_to_every_code_of_the_next_level"),
        (Broken(made=Relative), "test_distances_are_to_every_code_of_the_next_level"),
        (Broken(made=Unread), "test_its_state_is_all_of_it"),
        (Broken(made=Unread), "test_ids_are_unique_stay_and_are_kept"),
        (Random(), "test_equal_seeds_give_equal_quantizers"),
        (Silent(), "test_work_is_told_of"),
        (Loose(), "test_a_trainer_is_a_frozen_dataclass_with_a_name"),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "made", type(value)).__name__,
)
def test_a_broken_quantizer_fails(trainer: Any, test: str, tmp_path: Path) -> None:
    """The test that is about it, whatever else."""
    QUANTIZERS.add("product", getattr(trainer, "made", Product))
    suite = QuantizerTests()
    suite.trainer = lambda: trainer  # type: ignore[method-assign]
    assert test in failed(suite, tmp_path)


def test_a_kind_that_names_another_class_fails(tmp_path: Path) -> None:
    """Or nobody."""
    QUANTIZERS.add("product", Hasty)
    suite = QuantizerTests()
    suite.trainer = ProductTrainer  # type: ignore[method-assign]
    assert "test_its_kind_names_its_class" in failed(suite, tmp_path)


def test_a_sound_quantizer_fails_nothing(tmp_path: Path) -> None:
    """Else the tests above would prove nothing."""
    QUANTIZERS.add("product", Product)
    suite = QuantizerTests()
    suite.trainer = ProductTrainer  # type: ignore[method-assign]
    assert failed(suite, tmp_path) == set()


# --- formats ---


class Twice(Lines):
    """Partitions overlap."""

    def partitions(self, whole: Partition, rows: int) -> list[Partition]:
        return [dataclasses.replace(part, first=0) for part in super().partitions(whole, rows)]


class Rounded(Lines):
    def read(self, part: Partition, sink: Sink, progress: Any, *, digest: bool = False) -> str:
        add = sink.add_one
        sink.add_one = lambda key, vector, where: add(key, vector.round(2), where)  # type: ignore[method-assign]
        return super().read(part, sink, progress, digest=digest)


class Vast(Lines):
    def size(self, whole: Partition, dim: int) -> int:
        return super().size(whole, dim) * 100 if not dim or dim == 3 else 0


class Undigested(Lines):
    def read(self, part: Partition, sink: Sink, progress: Any, *, digest: bool = False) -> str:
        return super().read(part, sink, progress, digest=digest)[:10]


class Nameless(Lines):
    suffixes: ClassVar[tuple[str, ...]] = (".lost",)


@pytest.mark.parametrize(
    ("form", "test"),
    [
        (Twice(), "test_partitions_are_the_file"),
        (Rounded(), "test_every_row_comes_out_once_and_as_it_was"),
        (Vast(), "test_its_size_is_about_right"),
        (Undigested(), "test_the_digest_is_the_files"),
        (Nameless(), "test_a_file_is_read_by_its_name_alone"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_broken_format_fails(form: Any, test: str, tmp_path: Path) -> None:
    """The test that is about it; a sound one fails none."""

    class Suite(FormatTests):
        tested: Any = None

        def format(self) -> Any:
            return self.tested

        def write(self, path: Path, items: list[Any], vectors: NDArray[np.float32]) -> None:
            lines = [" ".join([str(item), *map(repr, row.tolist())]) for item, row in zip(items, vectors, strict=True)]
            path.write_text("\n".join(lines))

    suite = Suite()
    for tested, wanted in ((Lines(), None), (form, test)):
        FORMATS.add("lines", Lines())
        suite.tested = tested
        place = tmp_path / type(tested).__name__
        place.mkdir()
        found = failed(suite, place)
        assert found == set() if wanted is None else wanted in found


# --- exporters ---


class Appending(Csv):
    def write(self, table: SemanticIdTable, path: Path, options: Any) -> list[Path]:
        before = path.read_text() if path.exists() else ""
        written = super().write(table, path, options)
        path.write_text(path.read_text() + before)
        return written


class Littering(Csv):
    def write(self, table: SemanticIdTable, path: Path, options: Any) -> list[Path]:
        path.with_suffix(".tmp").write_text("left behind")
        return super().write(table, path, options)


class Dated(Csv):
    count = 0

    def write(self, table: SemanticIdTable, path: Path, options: Any) -> list[Path]:
        Dated.count += 1
        written = super().write(table, path, options)
        path.write_text(path.read_text().replace("codes", f"codes{Dated.count}"))
        return written


class Trusting(Csv):
    def read(self, path: Path) -> SemanticIdTable:
        try:
            return super().read(path)
        except Exception:
            return SemanticIdTable.from_mapping({})


class Lossy(Csv):
    def read(self, path: Path) -> SemanticIdTable:
        return SemanticIdTable.from_mapping({key: value for key, value in super().read(path).items() if value[0]})


@dataclasses.dataclass
class Changing:
    between: str = ";"


class Loosely(Csv):
    Options: ClassVar[type[Any]] = Changing


@pytest.mark.parametrize(
    ("exporter", "test"),
    [
        (Appending(), "test_what_was_there_is_replaced_as_a_whole"),
        (Littering(), "test_what_was_there_is_replaced_as_a_whole"),
        (Dated(), "test_equal_tables_give_equal_files"),
        (Trusting(), "test_another_file_is_an_error_of_ours"),
        (Lossy(), "test_what_is_written_is_read_again"),
        (Loosely(), "test_options_have_defaults_and_do_not_change"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_broken_exporter_fails(exporter: Any, test: str, tmp_path: Path) -> None:
    """The test that is about it; a sound one fails none."""
    suite = ExporterTests()
    for tested, wanted in ((Csv(), None), (exporter, test)):
        suite.exporter = lambda tested=tested: tested  # type: ignore[method-assign,misc]
        place = tmp_path / type(tested).__name__
        place.mkdir()
        found = failed(suite, place)
        assert found == set() if wanted is None else wanted in found


# --- executors ---


def lazy(folder: Path, tasks: Sequence[Any], progress: Any, limit: int) -> None:
    """Leaves the last task undone."""
    run_here(folder, tasks[:-1], progress, limit)


def quiet(folder: Path, tasks: Sequence[Any], progress: Any, limit: int) -> None:
    """Swallows what goes wrong."""
    with suppress(Exception):
        run_here(folder, tasks, progress, limit)


@pytest.mark.parametrize(
    ("executor", "test"),
    [
        (lazy, "test_ids_are_those_of_memory"),
        (quiet, "test_what_went_wrong_comes_out_by_its_own_type"),
    ],
)
def test_a_broken_executor_fails(executor: Callable[..., None], test: str, tmp_path: Path) -> None:
    """The test that is about it."""
    suite = ExecutorTests()
    suite.executor = lambda: executor  # type: ignore[method-assign,return-value]
    assert test in failed(suite, tmp_path)
