"""
Semantic IDs in the files of other tools, and back: JSON, parquet, arrays, tokens, a trie for decoding.

Every export of IDs has its reader here, and reading gives the same IDs. Formats that hold codes alone (arrays) get
the items in a file beside them. Torch, pyarrow and transformers are loaded only by those who ask for what needs them.
"""

from semid_dataset.exports.decoding import SemanticIdLogitsProcessor, prefix_allowed_tokens_fn
from semid_dataset.exports.numbers import flat_ids, unflatten_ids
from semid_dataset.exports.registry import FORMATS, Format, export, format_of, read_export
from semid_dataset.exports.tokens import token_ids_of, token_list
from semid_dataset.exports.trie import PrefixTrie

__all__ = [
    "FORMATS",
    "Format",
    "PrefixTrie",
    "SemanticIdLogitsProcessor",
    "export",
    "flat_ids",
    "format_of",
    "prefix_allowed_tokens_fn",
    "read_export",
    "token_ids_of",
    "token_list",
    "unflatten_ids",
]
