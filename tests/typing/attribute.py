"""What a type checker must see; checked by mypy in `make check`, never run."""

from pathlib import Path

from typing_extensions import assert_type

from semid_dataset import LazySemanticIds, ResidualQuantizer, SemanticIdMixin, SemanticIdTable, generate_semantic_ids


class Base:
    data_dir = Path("data")
    mm_emb_ids = ("81",)


class WithMixin(SemanticIdMixin, Base):
    pass


class WithDescriptor(Base):
    semantic_id_dict = LazySemanticIds()


assert_type(WithMixin().semantic_id_dict, SemanticIdTable)
assert_type(WithMixin().prepare_semantic_ids(parent="table.safetensors"), SemanticIdTable)
assert_type(WithDescriptor.semantic_id_dict, LazySemanticIds)
table = WithDescriptor().semantic_id_dict
assert_type(table, SemanticIdTable)
assert_type(table[20_000_000_027], list[int])
assert_type(table.get("20000000027"), list[int] | None)
assert_type(table.get(7, "none"), list[int] | str)
assert_type(table.coverage([1, 2]), float)
assert_type(table.quantizer, ResidualQuantizer)
assert_type(table.embedding_table_sizes(), tuple[int, ...])
assert_type(generate_semantic_ids("data", ["81"]), SemanticIdTable)
WithDescriptor().semantic_id_dict = {"7": [1, 2]}
WithDescriptor().semantic_id_dict = None
