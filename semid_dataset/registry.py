"""
Parts that are known by name, loaded when they are asked for: ours, and those of other packages.

Ours are a table of names and places. Other packages announce theirs as entry points of a group, such as
`semid_dataset.formats`; they are looked for only where a name is not ours.
"""

import importlib
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

from semid_dataset.errors import ConfigError

__all__ = ["Registry"]


class Registry:
    """
    Names of one kind of part.

    Args:
        kind: what the parts are, in a word, for messages.
        group: of entry points.
        ours: name -> "module:Class".
    """

    def __init__(self, kind: str, group: str, ours: Mapping[str, str]) -> None:
        self.kind = kind
        self.group = group
        self._ours = dict(ours)
        self._loaded: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """
        Return an instance of the part of a name.

        Raises:
            ConfigError: there is none, or it cannot be imported.
        """
        if name not in self._loaded:
            self._loaded[name] = self._load(name)()
        return self._loaded[name]

    def others(self) -> Iterator[Any]:
        """Yield the parts of other packages."""
        for point in entry_points(group=self.group):
            if point.name not in self._ours:
                yield self.get(point.name)

    def _load(self, name: str) -> Any:
        if name in self._ours:
            module, _, attribute = self._ours[name].partition(":")
            return getattr(importlib.import_module(module), attribute)
        for point in entry_points(group=self.group, name=name):
            try:
                return point.load()
            except (ImportError, AttributeError) as error:
                raise ConfigError(f"The {self.kind} {name!r} of {point.value} cannot be loaded: {error}.") from error
        raise ConfigError(f"{name!r} is no {self.kind}; there are {', '.join(sorted(self._ours))}.")
