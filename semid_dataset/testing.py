"""
What parts of other packages are held to: test classes to subclass, the ones that ours are held to.

    from semid_dataset.testing import QuantizerTests

    class TestMine(QuantizerTests):
        def trainer(self):
            return MyTrainer()

Run by pytest (they take its `tmp_path`); nothing else is needed. docs/extending.md has one of each.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from semid_dataset.codec.kinds import read_quantizer, state_of
from semid_dataset.errors import TableError
from semid_dataset.progress import Listener, Progress
from semid_dataset.protocols import Executor, Exporter, Format, Partition, Quantizer, Trained, Trainer
from semid_dataset.registry import QUANTIZERS
from semid_dataset.table.table import SemanticIdTable

__all__ = ["ExecutorTests", "ExporterTests", "FormatTests", "QuantizerTests"]


def _is_frozen(kind: Any) -> bool:
    settings = getattr(kind, "__dataclass_params__", None)
    return settings is not None and bool(settings.frozen)


class QuantizerTests:
    """
    A quantizer and its trainer. Subclasses say `trainer`, or, for a quantizer that nothing here trains, `fitted`.

    Attributes:
        sizes: codes of every level that it is fitted with.
        dim: of the vectors.
    """

    sizes: ClassVar[tuple[int, ...]] = (8, 4, 8)
    dim: ClassVar[int] = 6

    def trainer(self) -> Trainer:
        """Return the trainer."""
        raise NotImplementedError("QuantizerTests: say which trainer is tested.")

    def vectors(self, count: int = 300) -> NDArray[np.float32]:
        """Return vectors in clusters, the same at every call."""
        random = np.random.default_rng(7)
        centres = random.normal(size=(30, self.dim))
        spread = random.normal(size=(400, self.dim))
        return (centres[random.integers(0, 30, 400)] + 0.2 * spread).astype(np.float32)[:count]

    def trained(self, seed: int = 0, progress: Progress | None = None, count: int = 300) -> Trained:
        """Return what the trainer makes of `vectors`."""
        return self.trainer().fit(
            self.vectors(count), sizes=self.sizes, device="cpu", seed=seed, progress=progress or Progress()
        )

    def fitted(self) -> Quantizer:
        """Return a quantizer of `sizes` codes for vectors of `dim` numbers."""
        return self.trained().quantizer

    # The trainer.

    def test_a_trainer_is_a_frozen_dataclass_with_a_name(self) -> None:
        """Its settings can be compared, printed and noted, and do not change under a training."""
        trainer: Any = self.trainer()
        assert _is_frozen(type(trainer))
        assert isinstance(trainer.name, str)
        assert trainer == dataclasses.replace(trainer)

    def test_equal_seeds_give_equal_quantizers(self) -> None:
        """And the global random numbers neither decide nor are drawn from."""
        found = []
        for number in (1, 2):
            np.random.seed(number)
            before = str(np.random.get_state())
            found.append(state_of(self.trained(seed=3).quantizer))
            assert str(np.random.get_state()) == before
        one, other = found
        assert one[1] == other[1]
        assert one[0].keys() == other[0].keys()
        assert all(np.array_equal(one[0][name], other[0][name]) for name in one[0])

    def test_work_is_told_of(self) -> None:
        """Who waits for this process knows by it that it is alive."""
        heard: list[int] = []

        class Ear(Listener):
            def advance(self, done: int) -> None:
                heard.append(done)

            def epoch(self, number: int, epochs: int, loss: float) -> None:
                heard.append(number)

        self.trained(progress=Progress(Ear()))
        assert heard, "progress.advance() was never called"

    # The quantizer.

    def test_its_kind_names_its_class(self) -> None:
        """Whoever opens the file finds who reads it."""
        quantizer = self.fitted()
        assert QUANTIZERS.get(quantizer.kind) is type(quantizer), f"{quantizer.kind!r} names another class"
        assert tuple(quantizer.codebook_sizes) == self.sizes
        assert quantizer.dim == self.dim

    def test_codes_are_whole_numbers_below_the_sizes(self) -> None:
        """(n, levels), for no vector too."""
        quantizer = self.fitted()
        for count in (300, 1, 0):
            codes = np.asarray(quantizer.encode(self.vectors(count)))
            assert codes.shape == (count, len(self.sizes))
            assert codes.dtype.kind in "iu"
            assert (codes >= 0).all()
            assert (codes < np.array(self.sizes)).all()

    def test_a_vector_has_its_codes_in_any_company(self) -> None:
        """Alone, among others, in another order: else one item would have two IDs."""
        quantizer, vectors = self.fitted(), self.vectors()
        codes = np.asarray(quantizer.encode(vectors))
        order = np.random.default_rng(0).permutation(len(vectors))
        assert np.array_equal(np.asarray(quantizer.encode(vectors[order])), codes[order])
        for batch in (1, 7):
            parts = [np.asarray(quantizer.encode(vectors[at : at + batch])) for at in range(0, 50, batch)]
            assert np.array_equal(np.concatenate(parts)[:50], codes[:50])
        assert np.array_equal(vectors, self.vectors())

    def test_codes_stand_for_vectors_near_the_items(self) -> None:
        """Float32, finite; all codes nearer than the mean of all items, and more codes nearer than fewer."""
        quantizer, vectors = self.fitted(), self.vectors()
        codes = np.asarray(quantizer.encode(vectors))
        errors = []
        for level in range(1, len(self.sizes) + 1):
            decoded = np.asarray(quantizer.decode(codes[:, :level]))
            assert decoded.shape == vectors.shape
            assert decoded.dtype == np.float32
            assert np.isfinite(decoded).all()
            errors.append(float(np.square(vectors - decoded).sum()))
        assert errors == sorted(errors, reverse=True), f"errors by level: {errors}"
        assert errors[-1] < 0.9 * float(np.square(vectors - vectors.mean(0)).sum())

    def test_distances_are_to_every_code_of_the_next_level(self) -> None:
        """One a code, the same in any company, and never much nearer to another last code than to an item's own."""
        quantizer, vectors = self.fitted(), self.vectors(100)
        codes = np.asarray(quantizer.encode(vectors)).astype(np.int64)
        for level, size in enumerate(self.sizes):
            found = np.asarray(quantizer.distances(vectors, codes[:, :level]))
            assert found.shape == (100, size)
            assert np.isfinite(found).all()
            alone = np.asarray(quantizer.distances(vectors[5:6], codes[5:6, :level]))
            assert np.array_equal(alone, found[5:6])
        own = found[np.arange(100), codes[:, -1]]
        room = 1e-4 * float(np.abs(found).max())
        assert (own <= found.min(1) + room).all(), "an item's last code is not the nearest below its prefix"
        wrong = found[np.arange(100), (codes[:, -1] + 1) % self.sizes[-1]]
        decoded = np.concatenate([codes[:, :-1], ((codes[:, -1:] + 1) % self.sizes[-1])], 1)
        true = [np.square(vectors - np.asarray(quantizer.decode(some))).sum(1) for some in (codes, decoded)]
        assert np.corrcoef(wrong - own, true[1] - true[0])[0, 1] > 0.5, "distances and decode do not agree"

    def test_its_state_is_all_of_it(self) -> None:
        """Arrays and JSON; what they give back encodes and decodes alike, bit for bit."""
        quantizer, vectors = self.fitted(), self.vectors()
        arrays, config = quantizer.to_state()
        assert all(isinstance(array, np.ndarray) and array.dtype != object for array in arrays.values())
        whole, description = state_of(quantizer)
        again = read_quantizer(whole, json.loads(json.dumps(description)))
        codes = np.asarray(quantizer.encode(vectors))
        assert np.array_equal(np.asarray(again.encode(vectors)), codes)
        assert np.array_equal(np.asarray(again.decode(codes)), np.asarray(quantizer.decode(codes)))
        assert json.loads(json.dumps(config)) == json.loads(json.dumps(again.to_state()[1]))

    def test_a_damaged_state_is_refused(self) -> None:
        """Without one of its arrays there is no quantizer, and certainly no other one."""
        arrays, description = state_of(self.fitted())
        for name in arrays:
            try:
                read_quantizer({key: array for key, array in arrays.items() if key != name}, description)
            except TableError:
                continue
            assert name in {"centre"}, f"nobody misses the array {name!r}"

    # As a table.

    def test_ids_are_unique_stay_and_are_kept(self, tmp_path: Path) -> None:
        """Made, saved, opened, grown: what uniqueness and files ask of it."""
        from semid_dataset.api import fit

        vectors = self.vectors()
        table = fit(vectors[:200], algorithm=self.trainer(), levels=len(self.sizes), codes=self.sizes, device="cpu")
        again = SemanticIdTable.open(table.save(tmp_path / "t.safetensors"))
        by_itself = np.asarray(self.trained(count=200).quantizer.encode(vectors))
        assert np.array_equal(again.encode(vectors), by_itself), "what was read encodes otherwise than what was made"
        shared = 200 - len(np.unique(table.codes_array, axis=0))
        assert shared == max(0, 200 - int(np.prod(self.sizes)) + 1)
        grown = again.extend(vectors[:230], np.arange(230))
        assert np.array_equal(grown.codes(np.arange(200)), table.codes(np.arange(200)))
        assert len(grown) == 230


class _Notes:
    """Hears of ids that were converted, and keeps nothing."""

    def note(self, written: object, number: int, where: str) -> None:
        pass

    def in_column(self, name: str, where: object) -> None:
        pass


class _Rows:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.dim = 0
        self.batch = 4
        self.strict = False
        self.wanted: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None
        self.rows: dict[str, NDArray[np.float32]] = {}
        self.rejected: list[str] = []
        self.ids: Any = _Notes()

    def begin(self, dim: int, rows: int = 0) -> None:
        assert not self.dim or self.dim == dim, "the width changed within a file"
        self.dim = dim

    def add(self, keys: NDArray[np.int64], vectors: NDArray[Any], where: "str | Sequence[str]") -> None:
        for key, vector in zip(keys.tolist(), vectors, strict=True):
            self.add_one(key, vector, str(where))

    def add_named(self, keys: "Sequence[int | str]", vectors: NDArray[Any], where: "Sequence[str]") -> None:
        for key, vector in zip(keys, vectors, strict=True):
            self.add_one(key, vector, str(where))

    def add_one(self, key: "int | str", vector: NDArray[Any], where: str) -> None:
        assert self.dim == len(vector), "a row came before begin(dim), or is of another width"
        self.rows[str(key)] = np.array(vector, np.float32)  # a copy: readers may use their memory again

    def reject(self, what: str, count: int = 1) -> None:
        self.rejected.append(what)

    def pass_over(self) -> None:
        raise AssertionError("a row was passed over although all are wanted")


class FormatTests:
    """A format of embeddings. Subclasses say `format` and `write`, and `items` where they cannot be any."""

    def format(self) -> Format:
        """Return the format."""
        raise NotImplementedError("FormatTests: say which format is tested.")

    def write(self, path: Path, items: list[Any], vectors: NDArray[np.float32]) -> None:
        """Write items and vectors to a file of this format."""
        raise NotImplementedError("FormatTests: say how such a file is written.")

    def items(self) -> list[Any]:
        """Return 25 items."""
        return list(range(10**10, 10**10 + 25))

    def _file(self, folder: Path) -> tuple[Partition, NDArray[np.float32]]:
        path = folder / f"some{self.format().suffixes[0]}"
        vectors = np.random.default_rng(0).normal(size=(25, 3)).astype(np.float32)
        self.write(path, self.items(), vectors)
        return Partition(self.format().name, str(path)), vectors

    def test_every_row_comes_out_once_and_as_it_was(self, tmp_path: Path) -> None:
        """Items by their spelling, numbers to the bit; no row is rejected."""
        whole, vectors = self._file(tmp_path)
        sink = _Rows()
        self.format().read(whole, sink, lambda done: None)
        assert list(sink.rows) == [str(item) for item in self.items()]
        assert np.array_equal(np.stack(list(sink.rows.values())), vectors)
        assert not sink.rejected

    def test_partitions_are_the_file(self, tmp_path: Path) -> None:
        """Each row in one of them, whatever order they are read in; none where it cannot be read in parts."""
        whole, vectors = self._file(tmp_path)
        parts = self.format().partitions(whole, 7)
        if not parts:
            return
        sink = _Rows()
        for part in reversed(parts):
            before = len(sink.rows)
            self.format().read(Partition.from_dict(json.loads(json.dumps(part.to_dict()))), sink, lambda done: None)
            assert part.last < 0 or len(sink.rows) - before == part.last - part.first
        assert sorted(sink.rows) == sorted(str(item) for item in self.items())
        assert np.array_equal(np.stack([sink.rows[str(item)] for item in self.items()]), vectors)

    def test_its_size_is_about_right(self, tmp_path: Path) -> None:
        """Within a factor of four: it decides whether a file fits into memory."""
        whole, _ = self._file(tmp_path)
        assert 25 / 4 <= self.format().size(whole, 3) <= 25 * 4

    def test_the_digest_is_the_files(self, tmp_path: Path) -> None:
        """Of all its bytes, and only where it is asked for."""
        whole, _ = self._file(tmp_path)
        wanted = hashlib.sha256(Path(whole.path).read_bytes()).hexdigest()
        assert self.format().read(whole, _Rows(), lambda done: None, digest=True) == wanted
        assert self.format().read(whole, _Rows(), lambda done: None) in {"", wanted}

    def test_a_file_is_read_by_its_name_alone(self, tmp_path: Path) -> None:
        """As somebody names it who has embeddings: the registry finds the format."""
        from semid_dataset.inputs.matrix import read_vectors

        whole, vectors = self._file(tmp_path)
        keys, matrix = read_vectors(whole.path)
        found = dict(zip(map(str, keys), matrix, strict=True))
        assert np.array_equal(np.stack([found[str(item)] for item in self.items()]), vectors)


class ExporterTests:
    """A file that IDs are written to. Subclasses say `exporter`; `reads` is False where it holds no items."""

    reads: ClassVar[bool] = True

    def exporter(self) -> Exporter:
        """Return the exporter."""
        raise NotImplementedError("ExporterTests: say which exporter is tested.")

    def tables(self) -> Mapping[str, SemanticIdTable]:
        """Return tables that it must be able to write."""
        random = np.random.default_rng(0)
        codes = random.integers(0, 16, (50, 3)).tolist()
        return {
            "numbers": SemanticIdTable.from_mapping(dict(zip(range(7, 57), codes, strict=True)), codebook_sizes=16),
            "names": SemanticIdTable.from_mapping({f"B0{k}": row for k, row in enumerate(codes)}, codebook_sizes=16),
            "one level": SemanticIdTable.from_mapping({"a": [3], "b": [0]}, codebook_sizes=4),
            "large codes": SemanticIdTable.from_mapping({1: [9000, 3], 2: [0, 255]}, codebook_sizes=16384),
            "no item": SemanticIdTable.from_mapping({}, codebook_sizes=16),
        }

    def _path(self, folder: Path) -> Path:
        return folder / f"ids{self.exporter().suffix}"

    def test_what_is_written_is_read_again(self, tmp_path: Path) -> None:
        """The same items, the same IDs."""
        exporter = self.exporter()
        for name, table in self.tables().items():
            written = exporter.write(table, self._path(tmp_path), exporter.Options())
            assert written[0] == self._path(tmp_path), name
            assert all(path.is_file() for path in written), name
            if self.reads:
                again = exporter.read(self._path(tmp_path))
                assert [*map(str, again)] == [*map(str, table)], name
                assert [list(row) for row in again.values()] == [list(row) for row in table.values()], name

    def test_equal_tables_give_equal_files(self, tmp_path: Path) -> None:
        """So that a build can be compared with the one before."""
        exporter, table = self.exporter(), self.tables()["numbers"]
        files = exporter.write(table, self._path(tmp_path), exporter.Options())
        first = [path.read_bytes() for path in files]
        exporter.write(table, self._path(tmp_path), exporter.Options())
        assert [path.read_bytes() for path in files] == first

    def test_what_was_there_is_replaced_as_a_whole(self, tmp_path: Path) -> None:
        """A longer old file leaves nothing behind, and no other file appears."""
        exporter = self.exporter()
        for name in ("numbers", "one level"):
            written = exporter.write(self.tables()[name], self._path(tmp_path), exporter.Options())
        alone = tmp_path / "alone"
        alone.mkdir()
        exporter.write(self.tables()["one level"], self._path(alone), exporter.Options())
        assert self._path(tmp_path).read_bytes() == self._path(alone).read_bytes()
        assert {path for path in tmp_path.iterdir() if path.is_file()} == set(written)

    def test_another_file_is_an_error_of_ours(self, tmp_path: Path) -> None:
        """Neither a table nor an exception from the inside."""
        if not self.reads:
            return
        self._path(tmp_path).write_bytes(b"\x00\x01 this is no such file \xff")
        try:
            found = self.exporter().read(self._path(tmp_path))
        except TableError:
            return
        raise AssertionError(f"{found!r} was read from a file of noise")

    def test_options_have_defaults_and_do_not_change(self) -> None:
        """A frozen dataclass, so that a choice can be noted and repeated."""
        options = self.exporter().Options
        assert _is_frozen(options)
        assert options() == options()


class ExecutorTests:
    """Who has tasks done. Subclasses say `executor`."""

    def executor(self) -> Executor:
        """Return the executor."""
        raise NotImplementedError("ExecutorTests: say which executor is tested.")

    def _data(self, folder: Path, items: int = 3000) -> Path:
        data = folder / "data"
        (data / "creative_emb" / "emb_81_4").mkdir(parents=True)
        vectors = np.random.default_rng(0).normal(size=(items, 4)).round(3).tolist()
        lines = [json.dumps({"anonymous_cid": 100 + k, "emb": row}) for k, row in enumerate(vectors)]
        for part in range(3):
            text = "\n".join(lines[part::3]) + "\n"
            (data / "creative_emb" / "emb_81_4" / f"part-{part}.json").write_text(text)
        return data

    def _generate(self, data: Path) -> SemanticIdTable:
        from semid_dataset.api import generate_semantic_ids
        from semid_dataset.config import SemanticIdConfig
        from semid_dataset.registry import EXECUTORS

        config = SemanticIdConfig(num_quantizers=3, codebook_size=16, algorithm="rqkmeans", device="cpu")
        before = dict(EXECUTORS._loaded)
        EXECUTORS.add("tested", self.executor())
        try:
            return generate_semantic_ids(data, config=config, engine="tested", output_dir=None)
        finally:
            EXECUTORS._loaded = before

    def test_ids_are_those_of_memory(self, tmp_path: Path) -> None:
        """Every task is done, and what is made does not depend on who did it."""
        from semid_dataset.api import generate_semantic_ids
        from semid_dataset.config import SemanticIdConfig

        data = self._data(tmp_path)
        config = SemanticIdConfig(num_quantizers=3, codebook_size=16, algorithm="rqkmeans", device="cpu")
        table = self._generate(data)
        whole = generate_semantic_ids(data, config=config, output_dir=tmp_path / "whole")
        assert len(table) == 3000
        assert np.array_equal(table.codes(list(whole)), whole.codes_array)

    def test_what_went_wrong_comes_out_by_its_own_type(self, tmp_path: Path) -> None:
        """Who degrades catches ours; a task without a plan has lost its work."""
        from semid_dataset.errors import WorkGoneError

        task = {"stage": "sample", "part": 0, "below": 1, "bytes": 10}
        try:
            self.executor()(tmp_path, [task], Progress(), 1 << 28)
        except (WorkGoneError, OSError):
            return
        raise AssertionError("a task that cannot be done was no error")
