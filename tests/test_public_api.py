"""The names a user meets, and nothing behind them that a warm start would pay for."""

import inspect
import subprocess
import sys

import pytest

import semid_dataset


@pytest.mark.parametrize("name", semid_dataset.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    """Also those that are imported only when they are asked for."""
    value = getattr(semid_dataset, name)
    assert inspect.getdoc(value)
    assert name in dir(semid_dataset)


def test_other_names_are_attribute_errors() -> None:
    """A typo must not look like an import that failed."""
    with pytest.raises(AttributeError, match="no attribute 'SemanticIDMixin'"):
        _ = semid_dataset.SemanticIDMixin


def test_star_import_gives_the_public_names_and_torch_only_with_the_quantizer() -> None:
    """`from semid_dataset import *` is what notebooks do."""
    code = (
        "import sys; from semid_dataset import SemanticIdMixin, generate_semantic_ids_on_demand;"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    names: dict[str, object] = {}
    exec("from semid_dataset import *", names)
    assert set(semid_dataset.__all__) <= set(names)


@pytest.mark.parametrize("name", semid_dataset.__all__)
def test_public_functions_and_methods_say_what_they_raise_and_take(name: str) -> None:
    """No **kwargs: a misspelt setting must not be swallowed."""
    value = getattr(semid_dataset, name)
    members = [value] if inspect.isfunction(value) else [m for _, m in inspect.getmembers(value, inspect.isfunction)]
    for member in members:
        if not member.__name__.startswith("_") and member.__module__.startswith("semid_dataset"):
            kinds = {parameter.kind for parameter in inspect.signature(member).parameters.values()}
            assert inspect.Parameter.VAR_KEYWORD not in kinds, member.__qualname__
            assert inspect.getdoc(member), member.__qualname__
