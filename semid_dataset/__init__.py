"""
Semantic IDs for a PyTorch Dataset: trained on first access, cached on disk, shared by every process.

    from semid_dataset import SemanticIdMixin

    class MyTestDataset(SemanticIdMixin, MyDataset):
        ...

    semantic_id_dict = test_dataset.semantic_id_dict      # {item: [code, code, code, code]}
"""

from typing import TYPE_CHECKING, Any

from semid_dataset.config import SemanticIdConfig
from semid_dataset.dataset import LazySemanticIds, SemanticIdMixin
from semid_dataset.errors import SemanticIdWarning, SemidError
from semid_dataset.table import SemanticIdTable

if TYPE_CHECKING:
    from semid_dataset.commands import generate_from_vectors, generate_semantic_ids, generate_semantic_ids_on_demand
    from semid_dataset.quantizer import ResidualQuantizer

__version__ = "0.1.0"

__all__ = [
    "LazySemanticIds",
    "ResidualQuantizer",
    "SemanticIdConfig",
    "SemanticIdMixin",
    "SemanticIdTable",
    "SemanticIdWarning",
    "SemidError",
    "generate_from_vectors",
    "generate_semantic_ids",
    "generate_semantic_ids_on_demand",
]


def __getattr__(name: str) -> Any:
    # What a warm start does not need, it does not import: torch least of all.
    if name == "ResidualQuantizer":
        from semid_dataset.quantizer import ResidualQuantizer

        return ResidualQuantizer
    if name in {"generate_from_vectors", "generate_semantic_ids", "generate_semantic_ids_on_demand"}:
        from semid_dataset import commands

        return getattr(commands, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
