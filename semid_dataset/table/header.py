"""
What a table says about itself: `TableHeader`, and the one strict reader of it.

A table may come from anywhere: a checkpoint that was downloaded, a cache that others can write. Its JSON is believed
only as far as kinds, lengths and names go, and they are looked at here, once, before anything else sees them: a name
becomes a part of a path, a number a size. Tables of the first layout are read too; what they lack is derived here.
"""

import base64
import binascii
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset.config import MAX_CODES, MAX_LEVELS, Identity
from semid_dataset.errors import CorruptTableError

__all__ = ["LAYOUT", "LINEAGE_NAME", "Sketch", "TableHeader"]

LAYOUT = 2  # of what a header says; 1 had no behaviour, no kind of quantizer, no sketch, no computed scheme of digests
LINEAGE_NAME = re.compile(r"[0-9a-z][0-9a-z-]{0,100}")  # it is a folder's name
DIGEST = re.compile(r"[0-9a-f]{64}")
FEATURE_NAME = re.compile(r"[^\x00-\x1f/\\]{1,64}")
MAX_GENERATION = 999_999_999
MAX_DIM = 1 << 24
MAX_DEPTH = 16
MAX_TEXT = 1 << 16  # characters of one string
MAX_STEPS = 1_000_000
MAX_SKETCHED = 4_096
SEQUENCES = "sequences"  # what the first layout noted among the files where behaviour took part


@dataclass(frozen=True, eq=False)
class Sketch:
    """
    A sample of a table's (item, vector) pairs, by which a data set is recognised.

    It holds those whose hashes are the smallest, so that two sketches of overlapping catalogues hold the same of
    their common items, however the rest differs.

    Attributes:
        items: (n,) uint64 hashes of an item and a feature, ascending, each once.
        vectors: (n,) uint64 digests of their vectors; 0 where a vector says nothing (all of its numbers are equal).
    """

    items: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    vectors: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))

    def __len__(self) -> int:
        return len(self.items)

    def to_json(self) -> dict[str, str]:
        """Return it as JSON types: base64 of little-endian words."""
        return {
            "items": base64.b64encode(self.items.astype("<u8").tobytes()).decode(),
            "vectors": base64.b64encode(self.vectors.astype("<u8").tobytes()).decode(),
        }

    @classmethod
    def from_json(cls, value: object) -> "Sketch":
        """
        Return what `to_json` wrote.

        Raises:
            ValueError: it is no such thing.
        """
        if not isinstance(value, Mapping):
            raise ValueError("no object")
        columns = []
        for name in ("items", "vectors"):
            text = value.get(name)
            if not isinstance(text, str) or len(text) > 11 * MAX_SKETCHED:
                raise ValueError(f"its {name} are no text, or too long")
            try:
                raw = base64.b64decode(text, validate=True)
            except binascii.Error as error:
                raise ValueError(f"its {name} are no base64") from error
            if len(raw) % 8 or len(raw) > 8 * MAX_SKETCHED:
                raise ValueError(f"its {name} are {len(raw)} bytes")
            columns.append(np.frombuffer(raw, "<u8").astype(np.uint64))
        items, vectors = columns
        if len(items) != len(vectors) or bool((items[1:] <= items[:-1]).any()):
            raise ValueError("its items are not as many as its vectors, or not in order")
        return cls(items, vectors)


@dataclass(frozen=True)
class TableHeader:
    """
    What a table says about itself.

    Attributes:
        lineage: name of the lineage, "" outside of any; it names a folder.
        generation: number of the table in it.
        identity: what kind of ID it holds; None where nobody knows (a hand-made table, a bare quantizer).
        settings: of the training, as JSON types; `unique` decides how new items are coded.
        quantizer: description of the quantizer, whose `kind` names its reader; None without one.
        quality: figures, see `table.figures`.
        provenance: when, from what and at what cost it was made; `files` by path relative to the data directory.
        behaviour: digest of the sequences that took part in the IDs; "" where vectors alone did.
        history: a step for every generation; each but the first names the digest of the table that it grew from.
        origins: lineages that this one branched off, the latest first.
        replaces: lineages that retrainings took the place of, the latest first; their order follows from this, and not
            from clocks.
        sketch: of the (item, vector) pairs that it was made from.
        digest: what it states its digest to be; `SemanticIdTable.computed_digest` says what it is.
        scheme: of the digest; 1 covers keys, codes and weights, 2 whatever decides a code as well.
        json_sha256: of the `semantic_id_dict.json` with its IDs.
        layout: of the header as it was read; 0 where the table says nothing of itself.
        more: what a later minor version added; kept as it is.
    """

    lineage: str = ""
    generation: int = 0
    identity: Identity | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    quantizer: Mapping[str, Any] | None = None
    quality: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    behaviour: str = ""
    history: tuple[Mapping[str, Any], ...] = ()
    origins: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    sketch: Sketch = field(default_factory=Sketch)
    digest: str = ""
    scheme: int = 2
    json_sha256: str = ""
    layout: int = LAYOUT
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parent(self) -> str:
        """Digest of the table that this one grew from; "" where it grew from none."""
        return str(self.history[-1].get("parent", "")) if self.history else ""

    @property
    def unique(self) -> bool:
        """Whether new items get IDs that nobody else has."""
        return bool(self.settings.get("unique", True))

    @property
    def variance(self) -> float:
        """Of the vectors at the fit; 0 where nobody measured it."""
        return float(self.provenance.get("variance", 0.0))

    @property
    def relative_error(self) -> float:
        """Squared error over the variance, at the fit."""
        return float(self.provenance.get("relative_error", 0.0))

    @property
    def radius(self) -> float:
        """Distance from the quantizer's mean beyond which vectors are none of the bulk, see `codec.bulk`."""
        return float(self.provenance.get("radius", math.inf))

    def grew_from(self, digest: str) -> bool:
        """Say whether the table with this digest is among those that this one grew from, or whose IDs it took in."""
        return bool(digest) and any(digest in (step.get("parent"), step.get("rejoined")) for step in self.history)

    def exported(self, sha256: str) -> bool:
        """Say whether a `semantic_id_dict.json` was written from this table or from one that it grew from."""
        return bool(sha256) and (
            self.json_sha256 == sha256 or any(step.get("parent_json") == sha256 for step in self.history)
        )

    def child(
        self, step: Mapping[str, Any], *, lineage: str | None = None, sketch: Sketch | None = None
    ) -> "TableHeader":
        """
        Return the header of a table that grew from this one.

        Args:
            step: what is new about it: `generation`, and whatever else is worth noting. The digest of this table and
                the hash of its JSON are added, unless the step names others.
            lineage: its name, where it branches off.
            sketch: of its pairs; by default those of this table.
        """
        base = {key: value for key, value in (("parent", self.digest), ("parent_json", self.json_sha256)) if value}
        parted = lineage is not None and lineage != self.lineage and self.lineage
        return replace(
            self,
            lineage=self.lineage if lineage is None else lineage,
            generation=int(step["generation"]),
            quantizer=None if self.quantizer is None else {"kind": "residual", **self.quantizer},
            history=(*self.history, {**base, **step}),
            origins=(self.lineage, *self.origins) if parted else self.origins,
            sketch=self.sketch if sketch is None else sketch,
            digest="",
            json_sha256="",
            scheme=2,
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types; a table that knows nothing of itself says nothing."""
        said: dict[str, Any] = {
            "lineage": self.lineage,
            "generation": self.generation,
            "identity": None if self.identity is None else self.identity.to_dict(),
            "settings": dict(self.settings),
            "quantizer": None if self.quantizer is None else dict(self.quantizer),
            "quality": dict(self.quality),
            "provenance": dict(self.provenance),
            "behaviour": self.behaviour,
            "history": [dict(step) for step in self.history],
            "origins": list(self.origins),
            "replaces": list(self.replaces),
            "sketch": self.sketch.to_json() if len(self.sketch) else None,
            "json_sha256": self.json_sha256,
            "digest": self.digest,
        }
        said = {name: value for name, value in said.items() if value not in ("", None, [], {})}
        if self.scheme > 1 and self.digest:
            # The scheme stands beside the digest that it is of: a writer of the first layout copies what it does not
            # know and puts a digest of its own in place, which must not pass for one of the second scheme.
            said["digest_scheme"] = [self.scheme, self.digest]
        return {**self.more, **said, "layout": LAYOUT}

    @classmethod
    def from_json(cls, info: object, where: str, levels: int | None = None) -> "TableHeader":
        """
        Return what a table's JSON says.

        Args:
            info: the JSON, parsed.
            where: the table's name in errors.
            levels: of its codes, which its identity must agree with.

        Raises:
            CorruptTableError: a field is of the wrong kind, too long, too deep, no finite number or no name; the
                message names it.
        """
        return _Reader(where).header(info, levels)


class _Reader:
    """Looks at every value before it is believed."""

    def __init__(self, where: str) -> None:
        self._where = where

    def _bad(self, name: str, wanted: str, found: object) -> CorruptTableError:
        return CorruptTableError(f"'{self._where}' has a header whose {name} is no {wanted}: {found!r:.80}.")

    def header(self, info: object, levels: int | None) -> TableHeader:
        if not isinstance(info, Mapping):
            raise self._bad("info", "object", info)
        self._plain("info", info, MAX_DEPTH)
        layout = self._int("layout", info.get("layout", 1), 1, 1 << 16)
        digest = self._digest("digest", info.get("digest", ""))
        scheme = info.get("digest_scheme")
        known = set(_FIELDS) | {"layout", "digest_scheme"}
        behaviour = self._digest("behaviour", info.get("behaviour", ""))
        provenance = self._provenance(info.get("provenance"))
        quantizer = self._quantizer(info.get("quantizer"))
        if layout == 1 and quantizer is not None and _shaped(quantizer.get("fusion")):
            # Where it was noted: a file called so beside others may be a part of the embeddings.
            behaviour = self._digest("provenance.files.sequences", provenance.get("files", {}).get(SEQUENCES, ""))
        return TableHeader(
            lineage=self._name("lineage", info.get("lineage") or ""),
            generation=self._int("generation", info.get("generation", 0), 0, MAX_GENERATION),
            identity=self._identity(info.get("identity"), levels),
            settings=self._settings(info.get("settings")),
            quantizer=quantizer,
            quality=self._object("quality", info.get("quality")),
            provenance=provenance,
            behaviour=behaviour,
            history=self._history(info.get("history")),
            origins=self._names("origins", info.get("origins")),
            replaces=self._names("replaces", info.get("replaces")),
            sketch=self._sketch(info.get("sketch")),
            digest=digest,
            scheme=2 if isinstance(scheme, list) and scheme == [2, digest] else 1,
            json_sha256=self._digest("json_sha256", info.get("json_sha256", "")),
            layout=layout,
            more={key: value for key, value in info.items() if key not in known},
        )

    def _plain(self, name: str, value: object, depth: int) -> None:
        """Refuse what no writer of ours can have written: NaN, infinities, endless nesting, endless text."""
        if isinstance(value, Mapping | list | tuple):
            if depth == 0:
                raise CorruptTableError(f"'{self._where}' has a header whose {name} is nested too deeply.")
            for key, one in value.items() if isinstance(value, Mapping) else enumerate(value):
                if type(one) is int or type(one) is bool or one is None:
                    continue
                self._plain(f"{name}.{key}"[-200:], one, depth - 1)
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise self._bad(name, "finite number", value)
        elif isinstance(value, str):
            if len(value) > MAX_TEXT:
                raise self._bad(name, f"text of at most {MAX_TEXT} characters", value)
        elif value is not None and not isinstance(value, int):
            raise self._bad(name, "value of JSON", value)

    def _int(self, name: str, value: object, low: int, high: int) -> int:
        if type(value) is not int or not low <= value <= high:
            raise self._bad(name, f"whole number from {low} to {high}", value)
        return value

    def _number(self, name: str, value: object) -> None:
        if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > 1e300:
            raise self._bad(name, "finite number", value)

    def _text(self, name: str, value: object, pattern: "re.Pattern[str]", wanted: str) -> str:
        if not isinstance(value, str) or (value and not pattern.fullmatch(value)):
            raise self._bad(name, wanted, value)
        return value

    def _name(self, name: str, value: object) -> str:
        return self._text(name, value, LINEAGE_NAME, "name of a lineage")

    def _names(self, name: str, value: object) -> tuple[str, ...]:
        return tuple(self._name(name, one) for one in self._list(name, value, 10_000))

    def _digest(self, name: str, value: object) -> str:
        return self._text(name, value, DIGEST, "digest of 64 hexadecimal digits")

    def _object(self, name: str, value: object) -> Mapping[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self._bad(name, "object", value)
        return value

    def _list(self, name: str, value: object, most: int) -> list[Any]:
        if value is None:
            return []
        if not isinstance(value, list | tuple) or len(value) > most:
            raise self._bad(name, f"list of at most {most}", value)
        return list(value)

    def _identity(self, value: object, levels: int | None) -> Identity | None:
        if value is None:
            return None
        said = self._object("identity", value)
        sizes = self._list("identity.codebook_sizes", said.get("codebook_sizes"), MAX_LEVELS)
        for size in sizes:
            self._int("identity.codebook_sizes", size, 1, MAX_CODES)
        if not sizes or (levels is not None and len(sizes) != levels):
            raise self._bad("identity.codebook_sizes", f"list of {levels or 'one or more'} sizes", sizes)
        features = []
        for one in self._list("identity.features", said.get("features"), 1_000):
            pair = self._list("identity.features", one, 2)
            if len(pair) != 2:
                raise self._bad("identity.features", "list of pairs", one)
            text = self._text("identity.features", pair[0], FEATURE_NAME, "id of a feature")
            features.append((text, self._int("identity.features", pair[1], 1, MAX_DIM)))
        fusion = said.get("fusion", "single")
        if not isinstance(fusion, str) or len(fusion) > 64:
            raise self._bad("identity.fusion", "short text", fusion)
        return Identity(tuple(sizes), tuple(features), fusion)

    def _settings(self, value: object) -> Mapping[str, Any]:
        said = self._object("settings", value)
        if not isinstance(said.get("unique", True), bool):
            raise self._bad("settings.unique", "true or false", said["unique"])
        return said

    def _quantizer(self, value: object) -> Mapping[str, Any] | None:
        if value is None:
            return None
        said = self._object("quantizer", value)
        kind = said.get("kind", "residual")
        if not isinstance(kind, str) or not 0 < len(kind) <= 64:
            raise self._bad("quantizer.kind", "short text", kind)
        return said

    def _provenance(self, value: object) -> Mapping[str, Any]:
        said = self._object("provenance", value)
        for name in ("born", "variance", "relative_error", "radius", "seconds", "peak_rss_bytes", "bad_rows"):
            if name in said:
                self._number(f"provenance.{name}", said[name])
        for name in ("embeddings", "device", "source"):
            if not isinstance(said.get(name, ""), str):
                raise self._bad(f"provenance.{name}", "text", said[name])
        for name, one in self._object("provenance.files", said.get("files")).items():
            if not isinstance(one, str):
                raise self._bad(f"provenance.files.{name}"[:200], "text", one)
        return said

    def _history(self, value: object) -> tuple[Mapping[str, Any], ...]:
        steps = self._list("history", value, MAX_STEPS)
        for step in steps:
            if not isinstance(step, Mapping):
                raise self._bad("history", "list of objects", step)
            for name in ("generation", "items", "new", "moved"):
                if name in step:
                    self._int(f"history.{name}", step[name], -(1 << 53), 1 << 53)
            for name in ("time", "relative_error"):
                if name in step:
                    self._number(f"history.{name}", step[name])
            for name in ("parent", "rejoined", "parent_json"):
                if name in step:
                    self._digest(f"history.{name}", step[name])
        return tuple(steps)

    def _sketch(self, value: object) -> Sketch:
        if value is None:
            return Sketch()
        try:
            return Sketch.from_json(value)
        except ValueError as error:
            raise CorruptTableError(f"'{self._where}' has a header whose sketch cannot be read: {error}.") from error


def _shaped(fusion: object) -> bool:
    """Say whether a quantizer's fusion is a space that behaviour has shaped."""
    return isinstance(fusion, Mapping) and fusion.get("kind") == "metric"


_FIELDS: tuple[str, ...] = tuple(one.name for one in fields(TableHeader) if one.name not in {"more", "scheme"})
