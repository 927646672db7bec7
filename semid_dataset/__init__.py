"""
Semantic IDs for a PyTorch Dataset: trained on first access, cached on disk, shared by every process.

    from semid_dataset import SemanticIdMixin

    class MyTestDataset(SemanticIdMixin, MyDataset):
        ...

    semantic_id_dict = test_dataset.semantic_id_dict      # {item: [code, code, code, code]}
"""

TYPE_CHECKING = False  # type checkers take it for true; importing `typing` for it would cost more than this file
if TYPE_CHECKING:
    from typing import Any

    from semid_dataset.api import (
        add_semantic_ids,
        fit,
        generate_from_vectors,
        generate_semantic_ids,
        generate_semantic_ids_on_demand,
    )
    from semid_dataset.codec.residual import ResidualQuantizer
    from semid_dataset.config import SemanticIdConfig
    from semid_dataset.dataset import LazySemanticIds, SemanticIdMixin
    from semid_dataset.errors import SemanticIdWarning, SemidError
    from semid_dataset.table.table import SemanticIdTable

__version__ = "0.1.0"

__all__ = [
    "LazySemanticIds",
    "ResidualQuantizer",
    "SemanticIdConfig",
    "SemanticIdMixin",
    "SemanticIdTable",
    "SemanticIdWarning",
    "SemidError",
    "add_semantic_ids",
    "fit",
    "generate_from_vectors",
    "generate_semantic_ids",
    "generate_semantic_ids_on_demand",
]

_HOMES = {
    "LazySemanticIds": "dataset",
    "ResidualQuantizer": "codec.residual",
    "SemanticIdConfig": "config",
    "SemanticIdMixin": "dataset",
    "SemanticIdTable": "table.table",
    "SemanticIdWarning": "errors",
    "SemidError": "errors",
    "add_semantic_ids": "api",
    "fit": "api",
    "generate_from_vectors": "api",
    "generate_semantic_ids": "api",
    "generate_semantic_ids_on_demand": "api",
}


def __getattr__(name: str) -> "Any":
    # A name is imported when it is asked for: a warm start never imports torch, and the command line can catch a Ctrl-C
    # before numpy is there.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
