"""Whatever object comes in at a door, what comes out is an answer or an error of ours with a sentence."""

import array
import collections
import datetime
import decimal
import enum
import fractions
import io
import pathlib
import types
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from world import SMALL, make_data, vectors_of

from semid_dataset import (
    LazySemanticIds,
    ResidualQuantizer,
    SemanticIdConfig,
    SemanticIdTable,
    add_semantic_ids,
    fit,
    generate_from_vectors,
    generate_semantic_ids,
    generate_semantic_ids_on_demand,
)
from semid_dataset import exports as ex
from semid_dataset.api import extend_with_vectors, generate_from_file, generate_shard
from semid_dataset.check import diff_tables, verify_table
from semid_dataset.errors import SemidError
from semid_dataset.inputs.matrix import check_vectors, read_items, read_vectors
from semid_dataset.inputs.read import from_memory
from semid_dataset.inputs.sequences import read_sequences
from semid_dataset.report import write_report


class Colour(enum.Enum):
    RED = 1


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Hollow:
    """An object that answers every attribute, as mocks do."""

    def __getattr__(self, name: str) -> Any:
        return Hollow()


class Raising:
    """An object whose every method raises what nobody expects."""

    def _raise(self, *_: Any, **__: Any) -> Any:
        raise AttributeError("its own")

    __len__ = __iter__ = __getitem__ = __array__ = __index__ = __float__ = __str__ = __fspath__ = keys = items = _raise

    def __repr__(self) -> str:
        return "<raising>"

    def __bool__(self) -> bool:
        raise AttributeError("its own truth")


def itself() -> list[Any]:
    ring: list[Any] = []
    ring.append(ring)
    return ring


def deep() -> list[Any]:
    nested: list[Any] = []
    for _ in range(10_000):
        nested = [nested]
    return nested


ZOO: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "0": lambda: 0,
    "-1": lambda: -1,
    "10**400": lambda: 10**400,
    "10**5000": lambda: 10**5000,
    "1.5": lambda: 1.5,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "1j": lambda: 1j,
    "empty string": lambda: "",
    "word": lambda: "word",
    "null character": lambda: "a\0b",
    "half a pair": lambda: "\ud800",
    "digits": lambda: "9" * 5000,
    "long": lambda: "x" * 100_000,
    "bytes": lambda: b"abc",
    "bad bytes": lambda: b"\xff\xfe",
    "bytearray": lambda: bytearray(b"12"),
    "memoryview": lambda: memoryview(b"12"),
    "empty list": list,
    "list": lambda: [1, 2],
    "list of None": lambda: [None],
    "ragged": lambda: [[1], [2, 3]],
    "a list in itself": itself,
    "deep": deep,
    "list of odd": lambda: [object(), 1, "a", None, 1.5],
    "tuple": lambda: (1, "a"),
    "empty tuple": tuple,
    "set": lambda: {1, 2},
    "frozenset": frozenset,
    "empty dict": dict,
    "dict": lambda: {"a": 1},
    "dict of None": lambda: {None: None},
    "dict of lists": lambda: {1: [1, 2, 3], 2: [1, 2]},
    "defaultdict": lambda: collections.defaultdict(list),
    "range": lambda: range(3),
    "slice": lambda: slice(1),
    "ellipsis": lambda: ...,
    "generator": lambda: (i for i in range(3)),
    "iterator": lambda: iter([1, 2]),
    "function": lambda: len,
    "lambda": lambda: lambda: None,
    "class": lambda: int,
    "type": lambda: type,
    "module": lambda: types,
    "object": object,
    "exception": lambda: ValueError("x"),
    "enum": lambda: Colour.RED,
    "str subclass": lambda: Text("a"),
    "int subclass": lambda: Number(3),
    "decimal": lambda: decimal.Decimal("1.5"),
    "decimal NaN": lambda: decimal.Decimal("sNaN"),
    "fraction": lambda: fractions.Fraction(1, 3),
    "date": lambda: datetime.date(2026, 1, 1),
    "uuid": uuid.uuid4,
    "path": lambda: pathlib.Path("nowhere"),
    "pure windows path": lambda: pathlib.PureWindowsPath("c:/x"),
    "file": io.BytesIO,
    "array": lambda: array.array("d", [1.0]),
    "namespace": lambda: types.SimpleNamespace(device=3, data_dir=4),
    "hollow": Hollow,
    "raising": Raising,
    "np.int64": lambda: np.int64(3),
    "np.nan": lambda: np.float32("nan"),
    "np.str_": lambda: np.str_("a"),
    "np.bool_": lambda: np.True_,
    "0-d": lambda: np.array(3),
    "0-d object": lambda: np.array(None, object),
    "empty array": lambda: np.empty((0, 3)),
    "vector": lambda: np.ones(3),
    "matrix": lambda: np.ones((2, 3)),
    "cube": lambda: np.ones((2, 2, 2)),
    "NaN matrix": lambda: np.full((2, 8), np.nan),
    "objects": lambda: np.array([None, "a", [1]], object),
    "structured": lambda: np.zeros(2, [("a", int)]),
    "dates": lambda: np.array(["2026-01-01"], "M8[D]"),
    "strings": lambda: np.array(["a", "b"]),
    "void": lambda: np.zeros(1, "V8"),
    "masked": lambda: np.ma.MaskedArray([1, 2], [True, False]),
    "complex array": lambda: np.ones((2, 8), complex),
    "read-only": lambda: np.broadcast_to(np.float32(1), (2, 8)),
    "dtype": lambda: np.dtype(int),
    "tensor": lambda: torch.ones(2, 8),
    "0-d tensor": lambda: torch.tensor(1.5),
    "meta tensor": lambda: torch.ones(2, 8, device="meta"),
    "sparse tensor": lambda: torch.ones(2, 8).to_sparse(),
    "quantized tensor": lambda: torch.quantize_per_tensor(torch.ones(2, 8), 0.1, 0, torch.qint8),
    "bool tensor": lambda: torch.ones(2, 8, dtype=torch.bool),
    "module of torch": lambda: torch.nn.Embedding(3, 8),
    "device": lambda: torch.device("cpu"),
    "table": lambda: SemanticIdTable.from_mapping({1: [1, 2]}),
    "config": SemanticIdConfig,
    "descriptor": LazySemanticIds,
}

Door = Callable[[Any], Any]


class World:
    """What the doors need beside the odd object."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.x = vectors_of(40)
        self.ids = np.arange(40)
        self.data = make_data(folder / "data", 40)
        self.table = generate_from_vectors(self.ids, self.x, output_dir=folder / "out", config=SMALL)
        self.words = SemanticIdTable.from_mapping({"a": [1, 2], "7": [2, 3]})
        self.strict = SemanticIdTable.from_mapping({1: [1, 2]}, strict=True)
        self.quantizer = self.table.quantizer
        self.file = ex.export(self.table, folder / "ids.json")[0]
        self.array = ex.export(self.table, folder / "ids.npy")[0]
        self.hand_made = self.words.save(folder / "hand-made.safetensors")
        self._count = 0

    def new(self) -> Path:
        """A path at which nothing is yet."""
        self._count += 1
        return self.folder / f"new-{self._count}"

    def dataset(self, **given: Any) -> Any:
        """A dataset whose attributes, or whose descriptor's arguments, are odd."""
        arguments = {name: given.pop(name) for name in list(given) if name in {"parent", "cache_dir", "config"}}
        arguments |= {name[1:]: given.pop(name) for name in list(given) if name.startswith("_")}

        class Odd:
            semantic_id_dict = LazySemanticIds(**{"config": SMALL, **arguments})

            def __init__(self, data: Any) -> None:
                self.data_dir: Any = data
                self.mm_emb_ids: Any = ["81"]
                self.mm_emb_dict: Any = {}

        odd = Odd(self.data)
        vars(odd).update(given)
        return odd


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Once for all doors; what they write to relative paths lies in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))
        yield World(tmp_path_factory.mktemp("doors"))


def look_ups(w: World, table: SemanticIdTable) -> dict[str, Door]:
    return {
        "codes": table.codes,
        "codes offset": lambda x: table.codes([1], offset=x),
        "coverage": table.coverage,
        "rows_of": table.rows_of,
        "[]": lambda x: table[x],
        "get": table.get,
        "in": lambda x: x in table,
        "in values": lambda x: x in table.values(),
        "in items": lambda x: (x in table.items(), (x, x) in table.items()),
        "items_of": table.items_of,
        "metrics": table.metrics,
        "assert_same_digest": table.assert_same_digest,
        "embedding_table_sizes": table.embedding_table_sizes,
    }


def doors(w: World) -> dict[str, Door]:
    """Every public argument that takes an object."""
    found: dict[str, Door] = {
        "open": SemanticIdTable.open,
        "from_mapping": SemanticIdTable.from_mapping,
        "from_mapping value": lambda x: SemanticIdTable.from_mapping({1: x}),
        "from_mapping code": lambda x: SemanticIdTable.from_mapping({1: [x, 2]}),
        "from_mapping levels": lambda x: SemanticIdTable.from_mapping({}, levels=x),
        "from_mapping sizes": lambda x: SemanticIdTable.from_mapping({1: [1, 2]}, codebook_sizes=x),
        "open sizes": lambda x: SemanticIdTable.open(w.hand_made, codebook_sizes=x),
        "from_buffer": SemanticIdTable.from_buffer,
        "default": SemanticIdTable.default,
        "save": lambda x: w.table.save(x if not isinstance(x, str | Path) else w.new() / x),
        "read_export": ex.read_export,
        "read_export form": lambda x: ex.read_export(w.file, x),
        "read_export sizes": lambda x: ex.read_export(w.file, codebook_sizes=x),
        "read_export items": lambda x: ex.read_export(w.array, items=x),
        "export table": lambda x: ex.export(x, w.new() / "a.json"),
        "export path": lambda x: ex.export(w.table, x if not isinstance(x, str | Path) else w.new() / "a.json"),
        "export form": lambda x: ex.export(w.table, w.new() / "a.json", x),
        "export style": lambda x: ex.export(w.table, w.new() / "a.index.json", style=x),
        "export first": lambda x: ex.export(w.table, w.new() / "a.flat.npz", first=x),
        "token_list": ex.token_list,
        "token_list style": lambda x: ex.token_list((3, 3), x),
        "flat_ids": lambda x: ex.flat_ids(x, (3, 3)),
        "flat_ids sizes": lambda x: ex.flat_ids(w.table.codes_array, x),
        "unflatten_ids": lambda x: ex.unflatten_ids(x, (3, 3)),
        "trie of": ex.PrefixTrie.of,
        "trie open": ex.PrefixTrie.open,
        "trie children": ex.PrefixTrie.of(w.table.codes_array).children,
        "trie rows_of": ex.PrefixTrie.of(w.table.codes_array).rows_of,
        "check_vectors items": lambda x: check_vectors(x, w.x),
        "check_vectors": lambda x: check_vectors(w.ids, x),
        "read_vectors": read_vectors,
        "read_vectors items": lambda x: read_vectors(w.folder / "out", x),
        "read_items": read_items,
        "read_sequences": read_sequences,
        "from_memory": lambda x: from_memory(x, ["81"]),
        "from_memory feature": lambda x: from_memory({"81": x}, ["81"]),
        "from_memory vector": lambda x: from_memory({"81": {1: x}}, ["81"]),
        "from_memory ids": lambda x: from_memory({"81": {1: w.x[0]}}, x),
        "vectors items": lambda x: generate_from_vectors(x, w.x, output_dir=w.new(), config=SMALL),
        "vectors": lambda x: generate_from_vectors(w.ids, x, output_dir=w.new(), config=SMALL),
        "vectors output_dir": lambda x: generate_from_vectors(
            w.ids, w.x, output_dir=x if not isinstance(x, str | Path) else w.new(), config=SMALL
        ),
        "vectors config": lambda x: generate_from_vectors(w.ids, w.x, output_dir=w.new(), config=x),
        "vectors sequences": lambda x: generate_from_vectors(w.ids, w.x, output_dir=w.new(), config=SMALL, sequences=x),
        "vectors sequence": lambda x: generate_from_vectors(
            w.ids, w.x, output_dir=w.new(), config=SMALL, sequences=[x, [1, 2]]
        ),
        "array": lambda x: generate_from_file(x, "rows", output_dir=w.new()),
        "data_dir": lambda x: generate_semantic_ids(x, config=SMALL),
        "feature_ids": lambda x: generate_semantic_ids(w.data, x, config=SMALL),
        "config": lambda x: generate_semantic_ids(w.data, config=x),
        "output_dir": lambda x: generate_semantic_ids(
            w.data, config=SMALL, output_dir=x if not isinstance(x, str | Path) else w.new()
        ),
        "parent": lambda x: generate_semantic_ids(w.data, config=SMALL, parent=x),
        "engine": lambda x: generate_semantic_ids(w.data, config=SMALL, engine=x),
        "sequences": lambda x: generate_semantic_ids(w.data, config=SMALL, output_dir=w.new(), sequences=x),
        "shard": lambda x: generate_shard(w.data, config=SMALL, shard=x, shards=2),
        "shards": lambda x: generate_shard(w.data, config=SMALL, shard=0, shards=x),
        "extend table": lambda x: extend_with_vectors(x, w.ids, w.x),
        "extend items": lambda x: extend_with_vectors(w.table, x, w.x),
        "extend vectors": lambda x: extend_with_vectors(w.table, w.ids, x),
        "fit": lambda x: fit(x, levels=2, codes=4),
        "fit items": lambda x: fit(w.x, x, levels=2, codes=4),
        "fit algorithm": lambda x: fit(w.x, algorithm=x, levels=2, codes=4),
        "fit levels": lambda x: fit(w.x, levels=x, codes=4),
        "fit codes": lambda x: fit(w.x, levels=2, codes=x),
        "fit unique": lambda x: fit(w.x, levels=2, codes=4, unique=x),
        "fit device": lambda x: fit(w.x, levels=2, codes=4, device=x),
        "fit seed": lambda x: fit(w.x, levels=2, codes=4, seed=x),
        "fit sequences": lambda x: fit(w.x, levels=2, codes=4, sequences=x),
        "table encode": w.table.encode,
        "table extend": lambda x: w.table.extend(x, w.ids),
        "table extend items": lambda x: w.table.extend(w.x, x),
        "add_semantic_ids": add_semantic_ids,
        "quantizer fit": lambda x: ResidualQuantizer(levels=2, codes=4).fit(x),
        "quantizer algorithm": lambda x: ResidualQuantizer(levels=2, codes=4, algorithm=x).fit(w.x),
        "quantizer levels": lambda x: ResidualQuantizer(levels=x, codes=4).fit(w.x),
        "quantizer codes": lambda x: ResidualQuantizer(levels=2, codes=x).fit(w.x),
        "quantizer seed": lambda x: ResidualQuantizer(levels=2, codes=4, seed=x).fit(w.x),
        "quantizer device": lambda x: ResidualQuantizer(levels=2, codes=4, device=x).fit(w.x),
        "encode": w.quantizer.encode,
        "decode": w.quantizer.decode,
        "latents": w.quantizer.latents,
        "from_pretrained": ResidualQuantizer.from_pretrained,
        "save_pretrained": lambda x: w.quantizer.save_pretrained(x if not isinstance(x, str | Path) else w.new()),
        "from_arrays": lambda x: ResidualQuantizer.from_arrays(x, w.quantizer.to_arrays()[1]),
        "from_arrays said": lambda x: ResidualQuantizer.from_arrays(w.quantizer.to_arrays()[0], x),
        "report table": lambda x: write_report(x, w.new()),
        "report path": lambda x: write_report(w.table, x if not isinstance(x, str | Path) else w.new()),
        "report vectors": lambda x: write_report(w.words, w.new(), vectors=x),
        "report titles": lambda x: write_report(w.words, w.new(), titles=x),
        "report title": lambda x: write_report(w.words, w.new(), titles={"a": x}),
        "report candidates": lambda x: write_report(w.words, w.new(), candidates=x),
        "report name": lambda x: write_report(w.words, w.new(), name=x),
        "report lang": lambda x: write_report(w.words, w.new(), lang=x),
        "verify": verify_table,
        "verify embeddings": lambda x: verify_table(w.table, x),
        "diff old": lambda x: diff_tables(x, w.table),
        "diff new": lambda x: diff_tables(w.table, x),
        "assigned": lambda x: setattr(w.dataset(), "semantic_id_dict", x),
    }
    for name in SemanticIdConfig.__dataclass_fields__:
        found[f"config.{name}"] = lambda x, name=name: SemanticIdConfig(**{name: x})
    for name, table in (("numbers", w.table), ("words", w.words), ("strict", w.strict)):
        found |= {f"{name} {door}": call for door, call in look_ups(w, table).items()}
    return found


def attributes(w: World) -> dict[str, Door]:
    """What a dataset may have in place of what the attribute wants; reading it degrades, as the gate has it."""

    def read(**given: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return w.dataset(**given).semantic_id_dict

    return {
        "dataset.data_dir": lambda x: read(data_dir=x),
        "dataset.mm_emb_ids": lambda x: read(mm_emb_ids=x),
        "dataset.mm_emb_dict": lambda x: read(mm_emb_dict=x, data_dir=w.folder / "none"),
        "dataset.mm_emb_dict vector": lambda x: read(mm_emb_dict={"81": {1: x}}, data_dir=w.folder / "none"),
        "Lazy data_dir": lambda x: read(_data_dir=x),
        "Lazy feature_ids": lambda x: read(_feature_ids=x),
        "Lazy embeddings": lambda x: read(_embeddings=x),
        "Lazy config": lambda x: read(config=x),
        "Lazy parent": lambda x: read(parent=x),
        "Lazy cache_dir": lambda x: read(cache_dir=x),
        "on demand data": lambda x: generate_semantic_ids_on_demand(x, ["81"]),
        "on demand ids": lambda x: generate_semantic_ids_on_demand(w.data, x),
        "on demand args": lambda x: generate_semantic_ids_on_demand(w.data, ["81"], x),
    }


def through(call: Door, allowed: tuple[type[BaseException], ...], *, slow: bool = False) -> Iterator[str]:
    """Yield what a door says of objects of the zoo that is no answer and no error of ours; `slow`: of a fifth of it."""
    for name in list(ZOO)[:: 5 if slow else 1]:
        make = ZOO[name]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                warnings.simplefilter("ignore", DeprecationWarning)
                call(make())
        except allowed as error:
            if not str(error).strip():
                yield f"{name}: {type(error).__name__} without a sentence"
        except BaseException as error:
            yield f"{name}: {type(error).__name__}: {error!s:.100}"


SHARES = 8
SLOW = {"report vectors", "report title", "report candidates", "vectors sequence", "vectors output_dir"}  # they train


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_door_answers_or_says_what_is_wrong(world: World, share: int) -> None:
    """Never an AttributeError, a TypeError or a KeyError out of our insides, whatever the type."""
    named = list(doors(world).items())[share::SHARES]
    found = {
        name: bad for name, call in named if (bad := list(through(call, (SemidError, OSError), slow=name in SLOW)))
    }
    assert not found


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dataset_with_odd_attributes_says_so(world: World) -> None:
    """The attribute degrades, or raises what its documentation names."""
    named = attributes(world).items()
    found = {name: bad for name, call in named if (bad := list(through(call, (SemidError, RuntimeError, OSError))))}
    assert not found


def test_the_zoo_finds_a_door_that_falls_over() -> None:
    """A door that asks its argument for something gets what that raises."""
    assert len(list(through(lambda x: x.shape[0], (SemidError,)))) > len(ZOO) // 2
    assert not list(through(lambda x: None, (SemidError,)))
