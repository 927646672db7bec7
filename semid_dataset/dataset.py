"""
The attribute `semantic_id_dict`: a descriptor, and a mixin that brings it along.

Reading it the first time resolves a table (see `resolve`) and keeps it on the instance; later reads
return that one. A dataset that is sent to a worker carries the table's path, not the table.
"""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from semid_dataset._process import forks, outside_compiler
from semid_dataset.build.lineages import parent_of
from semid_dataset.config import SemanticIdConfig
from semid_dataset.environment import Context
from semid_dataset.errors import ConfigError, RecursiveAccessError, SemidError, TableError
from semid_dataset.inputs.discover import feature_names
from semid_dataset.objects import as_path, shown
from semid_dataset.objects import expect as of_type
from semid_dataset.resolve import Request, check_expected, check_pin, is_read_back, look, resolve
from semid_dataset.table.table import SemanticIdTable, Unopened

if TYPE_CHECKING:
    from semid_dataset.codec.residual import ResidualQuantizer

__all__ = ["LazySemanticIds", "SemanticIdMixin"]

_PINNED = "pinned"  # a table that the program assigned: no question stands behind it


class LazySemanticIds:
    """
    A class attribute that gives every dataset of the class its semantic IDs, on first access.

    Args:
        data_dir: name of the dataset's attribute that holds its data directory; None where there is none.
        feature_ids: name of its attribute with the feature ids.
        embeddings: name of its attribute with {feature id: {item: vector}}, used where there are no files
            to read; it may be missing.
        config: how IDs are made.
        parent: a published table to extend (file, folder or table), or a bare quantizer.
        cache_dir: a cache folder to try before the others.

    Reading it returns a `SemanticIdTable`. Assigning a mapping pins it; assigning an empty one (or
    None) means "nothing known" and leaves the attribute lazy; `del` forgets, and the next access
    resolves again.

    Raises, when it is read:
        GenerationError: default IDs would have to answer in one rank of several, or in a DataLoader worker.
        RecursiveAccessError: the code that computes it read it.
        RuntimeError: the dataset lacks an attribute that is named here.
    """

    def __init__(
        self,
        data_dir: str | None = "data_dir",
        feature_ids: str = "mm_emb_ids",
        embeddings: str | None = "mm_emb_dict",
        config: SemanticIdConfig | None = None,
        parent: "Path | str | SemanticIdTable | ResidualQuantizer | None" = None,
        cache_dir: Path | str | None = None,
    ) -> None:
        for what, named in (("data_dir", data_dir), ("feature_ids", feature_ids), ("embeddings", embeddings)):
            if not isinstance(named, str) and (named is not None or what == "feature_ids"):
                raise ConfigError(f"{what} is the name of an attribute of the dataset, a string, not {shown(named)}.")
        self._data_dir = data_dir
        self._feature_ids = feature_ids
        self._embeddings = embeddings
        self._config = SemanticIdConfig() if config is None else of_type(config, SemanticIdConfig, "config")
        self._parent = parent_of(parent)
        self._cache_dir = None if cache_dir is None else as_path(cache_dir, what="cache_dir")
        self._name = "semantic_id_dict"

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> "LazySemanticIds": ...

    @overload
    def __get__(self, instance: object, owner: type | None = None) -> SemanticIdTable: ...

    def __get__(self, instance: object | None, owner: type | None = None) -> "SemanticIdTable | LazySemanticIds":
        if instance is None:
            return self
        slot = self._slot(instance)
        if slot.table is not None:  # the warm way: no lock
            return slot.table
        with outside_compiler():
            return self.prepare(instance)

    def __set__(self, instance: object, value: Mapping[Any, Any] | None) -> None:
        slot = self._slot(instance)
        if value is None or (isinstance(value, Mapping) and not value and not isinstance(value, SemanticIdTable)):
            return  # a loader that found no file: nothing known, still lazy
        if not isinstance(value, Mapping):
            raise ConfigError(f"{self._name} takes a mapping {{item: codes}}, not {type(value).__name__}.")
        if not isinstance(value, SemanticIdTable):
            Context.at_door()  # in whose language look-ups will speak
            value = SemanticIdTable.from_mapping(
                value,
                status="pregenerated",
                reason="assigned by the program",
                expected_sizes=self._config.codebook_sizes,
            )
        with slot.lock():
            slot.table, slot.asked, slot.pickled = value, _PINNED, None
            self._let_go_of_exports(instance, slot)

    def _let_go_of_exports(self, instance: object, slot: "_Slot") -> None:
        """Stay lazy where what was assigned is what we exported: the program read it back and asks for no more."""
        try:
            request = self._ask(instance, None, None)
        except (RuntimeError, ConfigError):  # its directory is not known yet
            return
        if slot.table is not None and is_read_back(request, slot.table, Context.at_door()):
            slot.table, slot.asked = None, None

    def __delete__(self, instance: object) -> None:
        slot = self._slot(instance)
        with slot.lock():
            slot.table, slot.asked, slot.pickled = None, None, None

    def prepare(
        self,
        instance: object,
        *,
        parent: "Path | str | SemanticIdTable | ResidualQuantizer | None" = None,
        config: SemanticIdConfig | None = None,
        expect: str | None = None,
    ) -> SemanticIdTable:
        """
        Resolve now, unless this very question was answered; see `SemanticIdMixin.prepare_semantic_ids`.

        Raises:
            As reading the attribute.
        """
        slot = self._slot(instance)
        with slot.lock():
            asked = None if parent is None and config is None else (parent, config)
            if slot.asked == _PINNED and slot.table is not None:
                self._let_go_of_exports(instance, slot)
                if parent is not None and slot.table is not None:
                    check_pin(self._ask(instance, parent, config), slot.table, Context.at_door())
                    slot.table, slot.asked = None, None  # the parent says all of it, and more
            other = asked is not None and slot.asked not in (_PINNED, asked)
            if slot.table is None or other:
                if slot.resolving:  # by this very thread: others wait for the lock
                    raise RecursiveAccessError(
                        f"{type(instance).__name__}.{self._name} was read by the code that computes it "
                        f"(its {self._data_dir}, {self._feature_ids} or {self._embeddings}). Read it afterwards."
                    )
                slot.resolving = True
                try:
                    if slot.pickled is not None and not other:
                        slot.table = self._again(instance, slot.pickled, slot.asked)
                    else:
                        request = self._ask(instance, parent, config, expect)
                        slot.table = resolve(request, Context.at_door())
                        slot.asked = asked
                    slot.pickled = None
                finally:
                    slot.resolving = False
            check_expected(slot.table, expect or "")
            return slot.table

    def _again(self, instance: object, pickled: SemanticIdTable, asked: object) -> SemanticIdTable:
        """
        Return the table of a pickle; where it has left its place, the dataset's of today, if that holds the same IDs.

        Raises:
            TableError: neither can be had, or the dataset's has other IDs.
        """
        if not isinstance(pickled, Unopened):  # a copy of the dataset shares it, and has opened it
            return pickled
        try:
            Unopened.become(pickled, Unopened.found(pickled))
        except (TableError, OSError) as error:
            if asked == _PINNED:
                raise
            parent, config = asked if isinstance(asked, tuple) else (None, None)
            why = str(error)
            try:
                table = look(self._ask(instance, parent, config), Context.at_door())
            except (SemidError, OSError) as refusal:
                raise TableError(f"{why} Nor do this dataset's caches answer: {refusal}") from error
            if not Unopened.holds_in(pickled, table):
                raise TableError(
                    f"{why} This dataset's caches answer with {table.path or 'a table in memory'} "
                    f"({table.digest[:12]}, lineage {table.lineage}), which has not those IDs. Nothing was changed. "
                    f"`del dataset.{self._name}` takes what is there."
                ) from error
            Unopened.become(pickled, table)
        return pickled

    def _ask(
        self, instance: object, parent: Any, config: SemanticIdConfig | None, expect: str | None = None
    ) -> Request:
        try:
            data_dir = None if self._data_dir is None else getattr(instance, self._data_dir)
            feature_ids = getattr(instance, self._feature_ids)
        except AttributeError as error:
            # An AttributeError from here would send Python to the class's __getattr__, which hides the cause.
            raise RuntimeError(
                f"{type(instance).__name__}.{self._name} needs the attributes {self._data_dir!r} and "
                f"{self._feature_ids!r}, and one could not be read: {error}. Set them before it is read, or "
                "name others in LazySemanticIds(...)."
            ) from error
        try:
            embeddings = None if self._embeddings is None else getattr(instance, self._embeddings, None)
        except Exception as error:
            raise RuntimeError(f"{type(instance).__name__}.{self._embeddings} could not be read: {error}") from error
        parent = self._parent if parent is None else parent
        return Request(
            data_dir=None if data_dir is None else as_path(data_dir, what=f"The dataset's {self._data_dir}"),
            feature_ids=feature_names(feature_ids),
            embeddings=embeddings,
            config=self._config if config is None else of_type(config, SemanticIdConfig, "config"),
            parent=parent_of(parent),
            cache_dir=self._cache_dir,
            expect=expect or "",
        )

    def _slot(self, instance: object) -> "_Slot":
        try:
            attributes = vars(instance)
        except TypeError:
            raise ConfigError(
                f"{type(instance).__name__} has __slots__ and no __dict__, so {self._name} has no place to stay. "
                'Add "__dict__" to its __slots__.'
            ) from None
        key = f"_{self._name}_slot"
        slot = attributes.get(key)
        if slot is None:
            slot = attributes.setdefault(key, _Slot(id(instance)))  # atomic: two threads get one slot
        assert isinstance(slot, _Slot)
        if slot.owner != id(instance):
            slot = slot.handed_to(instance, attributes, key)
        return slot


class _Slot:
    """
    What an instance keeps: its table, and a lock that no other process has a say in.

    Attributes:
        owner: whose it is, by `id`: `copy.copy` gives the copy the original's. None out of a pickle.
        table: what the attribute returns.
        pickled: the table that it came with out of a pickle, until it is asked for.
        asked: the parent and settings that the table was asked for, where they were given, or `_PINNED`.
        resolving: it is being computed, by the thread that holds the lock.
    """

    def __init__(self, owner: int | None = None) -> None:
        self.owner = owner
        self.table: SemanticIdTable | None = None
        self.pickled: SemanticIdTable | None = None
        self.asked: object = None
        self.resolving = False
        self._locks = {forks(): threading.RLock()}

    def lock(self) -> threading.RLock:
        """Return this process's lock: a parent's may have been held by a thread that a child does not have."""
        lock = self._locks.get(forks())
        if lock is None:
            lock = self._locks.setdefault(forks(), threading.RLock())  # atomic: two threads get one lock
            with lock:
                self.resolving = False
        return lock

    def handed_to(self, instance: object, attributes: dict[str, Any], key: str) -> "_Slot":
        """Return the slot of a copy: one of its own, so that what is assigned to it is not assigned to the original."""
        with self.lock():
            slot: _Slot = attributes[key]
            if slot is not self:  # another thread was here
                return slot
            if self.owner is None:
                self.owner = id(instance)
                return self
            slot = attributes[key] = self._twin(id(instance))
            return slot

    def _twin(self, owner: int | None) -> "_Slot":
        twin = _Slot(owner)
        twin.table, twin.pickled, twin.asked = self.table, self.pickled, self.asked  # read-only: copies may share it
        return twin

    def __copy__(self) -> "_Slot":
        return self._twin(None)

    def __deepcopy__(self, entry: dict[int, Any]) -> "_Slot":
        return self._twin(None)

    def __reduce__(self) -> tuple[Any, ...]:
        # Always by a function: of a state that is None (nothing known yet) pickle would restore nothing at all.
        parent = self.asked[0] if isinstance(self.asked, tuple) else None
        named = self.asked == _PINNED or isinstance(parent, str | Path | None)
        return _slot_of, (self.pickled or self.table, self.asked if named else None)


def _slot_of(table: SemanticIdTable | None, asked: object) -> _Slot:
    """Return a slot out of a pickle, which opens no file yet."""
    slot = _Slot()
    slot.asked = asked
    if isinstance(table, Unopened):
        slot.pickled = table
    else:
        slot.table = table
    return slot


class SemanticIdMixin:
    """
    Gives a dataset the attribute `semantic_id_dict`; put it first among the bases.

    It reads `data_dir` and `mm_emb_ids` of the dataset, and `mm_emb_dict` where there are no files
    to read. For other names or settings, assign a `LazySemanticIds` of your own to `semantic_id_dict`.
    """

    semantic_id_dict: LazySemanticIds = LazySemanticIds()

    def prepare_semantic_ids(
        self,
        *,
        parent: "Path | str | SemanticIdTable | ResidualQuantizer | None" = None,
        config: SemanticIdConfig | None = None,
        expect: str | None = None,
    ) -> SemanticIdTable:
        """
        Resolve `semantic_id_dict` now: before a DataLoader copies the dataset to its workers.

        Args:
            parent: the table that the recommender was trained with, or its folder; new items are added to it.
            config: how IDs are made, if none are there.
            expect: digest or lineage of the table that the recommender was trained with (`table.save` writes the
                digest beside the table): another one, that did not grow from it, is an error. Also SEMID_EXPECT.

        Returns:
            The table, which the attribute returns from now on. Where the attribute was read before (in
            `__init__`, say) and `parent` or `config` ask for something else now, it is resolved again;
            a pinned mapping stays. What the dataset's own loader read back from our export is no pin.

        Raises:
            GenerationError: default IDs would have to answer in one rank of several, or in a DataLoader worker.
        """
        descriptor = type(self).semantic_id_dict
        if not isinstance(descriptor, LazySemanticIds):
            raise ConfigError(f"{type(self).__name__}.semantic_id_dict was replaced by {descriptor!r}.")
        return descriptor.prepare(self, parent=parent, config=config, expect=expect)
