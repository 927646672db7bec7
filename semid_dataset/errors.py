"""
Every exception this package raises on purpose.

    SemidError
    ├── ConfigError              (ValueError)     a setting that cannot be
    ├── EmbeddingError           (ValueError)     embeddings that cannot be used
    │   ├── NoEmbeddingsError                     there are none
    │   ├── ForeignVectorsError                   new items have vectors of another encoder
    │   └── UnsafePickleError                     a pickle that asks for more than arrays
    ├── TrainingError            (RuntimeError)   no codebooks came of it
    ├── NotFittedError           (ValueError)     a quantizer that has no codebooks yet
    ├── TableError               (ValueError)     a semantic-ID file that cannot be used
    │   ├── CorruptTableError                     damaged, cut off or foreign
    │   ├── TableVersionError                     written by a newer version
    │   └── SemanticIdFileError                   a semantic_id_dict.json that lies
    ├── ItemsError               (TypeError)      what is looked up is no list of items
    ├── ParentError              (ValueError)     a parent that does not fit this dataset
    │   ├── PinError                              what was pinned is not there
    │   └── DigestError                           another table than the one that was expected
    ├── UnknownItemError         (KeyError)       a strict table that lacks an item
    ├── StoreError               (OSError)        a cache that refuses
    │   ├── LockTimeoutError     (TimeoutError)   whoever generates makes no progress
    │   ├── WorkGoneError                         the files of a streamed run were taken away meanwhile
    │   └── NoRoomError                           a cache folder has no room for the parts of a streamed run
    └── GenerationError          (RuntimeError)   IDs are missing and must not be replaced by defaults
        ├── RecursiveAccessError                  asked for from within its own making
        └── ForkError                             a process that cannot do what is asked of it: forked, ending

Each takes one string. A DataLoader rebuilds a worker's exception as `type(message)`, so a second
argument would turn it into an opaque RuntimeError (torch/_utils.py, ExceptionWrapper.reraise).
"""

__all__ = [
    "ConfigError",
    "CorruptTableError",
    "DigestError",
    "EmbeddingError",
    "ForeignVectorsError",
    "ForkError",
    "GenerationError",
    "ItemsError",
    "LockTimeoutError",
    "NoEmbeddingsError",
    "NoRoomError",
    "NotFittedError",
    "ParentError",
    "PinError",
    "RecursiveAccessError",
    "SemanticIdFileError",
    "SemanticIdWarning",
    "SemidError",
    "StoreError",
    "TableError",
    "TableVersionError",
    "TrainingError",
    "UnknownItemError",
    "UnsafePickleError",
    "WorkGoneError",
]


class SemidError(Exception):
    """Root of all errors of this package."""

    def __init__(self, message: str) -> None:
        super().__init__(message)

    def __str__(self) -> str:
        # KeyError would show the repr of its argument, OSError may look for an errno: say the message.
        return str(self.args[0])


class ConfigError(SemidError, ValueError):
    """A setting has a value that cannot be."""


class EmbeddingError(SemidError, ValueError):
    """Embeddings cannot be used: unreadable, of the wrong shape, not finite."""


class NoEmbeddingsError(EmbeddingError):
    """There are no embeddings to make semantic IDs from."""


class ForeignVectorsError(EmbeddingError):
    """New items have vectors that are not such as the codebooks were made for; they got no ID."""


class UnsafePickleError(EmbeddingError):
    """A pickle asks for something other than numpy arrays. Nothing of it was run."""


class TrainingError(SemidError, RuntimeError):
    """Training ended without codebooks."""


class NotFittedError(SemidError, ValueError, AttributeError):
    """A quantizer was asked for what it has only after `fit`; an AttributeError, so that `hasattr` says no."""


class TableError(SemidError, ValueError):
    """A semantic-ID file cannot be used."""


class CorruptTableError(TableError):
    """A table file is damaged, cut off, or not a table."""


class TableVersionError(TableError):
    """A table file was written by a newer version of this package."""


class SemanticIdFileError(TableError):
    """A `semantic_id_dict.json` holds something that is no semantic ID."""


class ItemsError(SemidError, TypeError):
    """What is looked up is no container of items, or one without an order."""


class ParentError(SemidError, ValueError):
    """A parent table does not fit the dataset that it was given to."""


class PinError(ParentError):
    """What was pinned, by SEMID_PIN or `semid pin`, names no table or is not there. Nothing else is served for it."""


class DigestError(ParentError):
    """A table is not the one that was expected, by its digest or by its lineage."""


class UnknownItemError(SemidError, KeyError):
    """A strict table was asked for an item that it does not hold."""


class StoreError(SemidError, OSError):
    """No cache folder takes a write, or a path of the cache is not what it must be."""


class LockTimeoutError(StoreError, TimeoutError):
    """Another process holds the lock and makes no progress."""


class WorkGoneError(StoreError):
    """Files of a streamed run are gone or others by now: somebody else published, or began anew."""


class NoRoomError(StoreError):
    """A cache folder has no room for the parts of a streamed run."""


class GenerationError(SemidError, RuntimeError):
    """Semantic IDs are missing where default IDs would do harm (several ranks, a DataLoader worker)."""


class RecursiveAccessError(GenerationError):
    """`semantic_id_dict` was read by the very code that computes it."""


class ForkError(GenerationError):
    """A process that cannot do what is asked of it: forked too early or too late, ending, or a sub-interpreter."""


class SemanticIdWarning(UserWarning):
    """Semantic IDs are degraded: default or stale IDs answer, or the cache cannot be used."""
