"""Errors can be sent between processes, caught by builtin and read by people."""

import pickle

import pytest

from semid_dataset import errors

CLASSES = [getattr(errors, name) for name in errors.__all__ if name != "SemanticIdWarning"]


@pytest.mark.parametrize("cls", CLASSES)
def test_each_takes_one_string_and_survives_a_worker(cls: type[errors.SemidError]) -> None:
    """A DataLoader rebuilds a worker's error as type(message); pickling must keep the message too."""
    error = pickle.loads(pickle.dumps(cls("'a' is wrong. Do b.")))
    assert type(error) is cls
    assert str(error) == "'a' is wrong. Do b."


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls is not errors.SemidError])
def test_each_is_also_a_builtin(cls: type[errors.SemidError]) -> None:
    """Callers that know nothing of this package can still catch what they expect."""
    assert any(base.__module__ == "builtins" and base not in (Exception, BaseException, object) for base in cls.__mro__)
