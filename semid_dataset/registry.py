"""
Parts that are known by name, loaded when they are asked for: ours, and those of other packages.

Ours are tables of names and places. Other packages announce theirs as entry points of a group, such as
`semid_dataset.quantizers`; they are looked for only where a name is not ours.
"""

import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from semid_dataset.errors import ConfigError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["EXECUTORS", "EXPORTERS", "QUANTIZERS", "TRAINERS", "Registry"]


def entry_points(**wanted: str) -> "Iterable[EntryPoint]":
    """Return what other packages announce; its module takes longer to import than a warm start may."""
    from importlib import metadata

    found: Any = metadata.entry_points(**wanted)  # of a type that its stubs change from version to version
    return tuple(found)


class Registry:
    """
    Names of one kind of part.

    Args:
        kind: what the parts are, in a word, for messages.
        group: of entry points.
        ours: name -> "module:Class".
        made: whether a part is an instance, made once, of what is found there.
    """

    def __init__(self, kind: str, group: str, ours: Mapping[str, str], *, made: bool = True) -> None:
        self.kind: str = kind
        self.group: str = group
        self.ours: dict[str, str] = dict(ours)
        self._made = made
        self._loaded: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """
        Return the part of a name.

        Raises:
            ConfigError: there is none, or it cannot be imported.
        """
        if name not in self._loaded:
            found = self._load(name)
            self._loaded[name] = found() if self._made else found
        return self._loaded[name]

    def add(self, name: str, part: Any) -> None:
        """Make a part known in this process, in a notebook say; a package announces its own by an entry point."""
        self._loaded[name] = part

    def names(self) -> list[str]:
        """Return all names: ours, and those that other packages announce."""
        announced = {point.name for point in entry_points(group=self.group)} | self._loaded.keys()
        return [*self.ours, *sorted(announced - self.ours.keys())]

    def others(self) -> Iterator[Any]:
        """Yield the parts of other packages."""
        for name in self.names()[len(self.ours) :]:
            yield self.get(name)

    def _load(self, name: str) -> Any:
        if name in self.ours:
            module, _, attribute = self.ours[name].partition(":")
            return getattr(importlib.import_module(module), attribute)
        for point in entry_points(group=self.group, name=name):
            try:
                return point.load()
            except (ImportError, AttributeError) as error:
                raise ConfigError(f"The {self.kind} {name!r} of {point.value} cannot be loaded: {error}.") from error
        raise ConfigError(f"{name!r} is no {self.kind}; there are {', '.join(sorted(self.names()))}.")


QUANTIZERS = Registry(
    "kind of quantizer",
    "semid_dataset.quantizers",
    {
        "residual": "semid_dataset.codec.residual:ResidualQuantizer",
        "faiss": "semid_dataset.codec._faiss:FaissQuantizer",
    },
    made=False,
)
EXPORTERS = Registry("format of exports", "semid_dataset.exporters", {})  # ours: `exports.FORMATS`
EXECUTORS = Registry(
    "engine",
    "semid_dataset.executors",
    {
        "local": "semid_dataset.build.streaming.executors:run_processes",
        "ray": "semid_dataset.build.streaming.executors:run_on_ray",
    },
    made=False,
)
TRAINERS = Registry(
    "algorithm",
    "semid_dataset.trainers",
    {
        "auto": "semid_dataset.codec._rqvae:Auto",
        "rqvae": "semid_dataset.codec._rqvae:RQVAE",
        "rqkmeans": "semid_dataset.codec._codebooks:RQKMeans",
        "faiss": "semid_dataset.codec._faiss:Faiss",
    },
    made=False,
)
