"""The environment is read at the doors, once, the way the documentation says; a slip in it ends nothing."""

import dataclasses
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from world import SmallDataset, make_data

from semid_dataset import SemanticIdConfig, SemanticIdTable, generate_semantic_ids, generate_semantic_ids_on_demand
from semid_dataset.environment import Context, Environment, Gate, parse_bytes, parse_seconds
from semid_dataset.errors import ConfigError, SemanticIdWarning


@pytest.mark.parametrize("value", [None, "", " ", "1", "true", "TRUE ", "Yes", "on"])
def test_these_words_open_the_gate(value: str | None) -> None:
    """Unset means allowed: the recommended way needs no setting at all."""
    assert Gate.parse(value).allowed


@pytest.mark.parametrize(
    ("value", "understood"), [("0", True), ("False", True), ("no", True), (" OFF", True), ("nein", False), ("2", False)]
)
def test_everything_else_closes_it(value: str, understood: bool) -> None:
    """A typo in production must not start a training."""
    gate = Gate.parse(value)
    assert not gate.allowed
    assert gate.understood is understood


@pytest.mark.parametrize(
    ("variables", "language"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LC_ALL": "en_US.UTF-8", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"SEMID_LANG": "zh", "LC_ALL": "C"}, "zh"),
        ({"SEMID_LANG": "", "LANG": "zh_TW"}, "zh"),
    ],
)
def test_language_follows_its_variable_then_the_locale(variables: dict[str, str], language: str) -> None:
    """SEMID_LANG wins over the locale."""
    assert Environment.read(variables).language == language


def test_the_environment_is_read_once_into_a_value() -> None:
    """A snapshot does not change under the code that holds it."""
    environment = Environment.read(
        {"SEMID_MMAP": "0", "WORLD_SIZE": "8", "SEMID_LOCK_TIMEOUT": "1.5", "SEMID_PARENT": "/p"}
    )
    assert (environment.mmap, environment.world_size, environment.lock_timeout, environment.parent) == (
        False,
        8,
        1.5,
        "/p",
    )
    assert Environment.read({"WORLD_SIZE": "many"}).world_size == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        environment.mmap = True  # type: ignore[misc]


NO_TIMES = ["0", "-1", "soon", "inf", "nan", "5 parsecs", "1h30", "m", "1e9999", "5m;", "--5", "1.2.3"]


@pytest.mark.parametrize("variable", ["SEMID_LOCK_TIMEOUT", "SEMID_LOCK_DEADLINE"])
@pytest.mark.parametrize("value", NO_TIMES)
def test_a_time_that_is_none_is_said_and_the_default_used(variable: str, value: str) -> None:
    """Waiting for ever, or not at all, is never what was meant; an attribute is no place to fail for it."""
    with pytest.warns(SemanticIdWarning, match=f"{variable}.*{re.escape(value)}.*the default"):
        context = Context.at_door(variables={variable: value})
    assert context.waiting(SemanticIdConfig()) == (300.0, 86_400.0)


@pytest.mark.parametrize("variable", ["SEMID_LOCK_TIMEOUT", "SEMID_LOCK_DEADLINE", "SEMID_MEMORY_LIMIT", "SEMID_MMAP"])
def test_an_explicit_command_refuses_what_it_does_not_understand(variable: str) -> None:
    """Whoever calls it waits for the answer."""
    with pytest.raises(ConfigError, match=f"{variable}='soonish'"):
        Context.at_door(explicit=True, variables={variable: "soonish"})


TIMES = {"300": 300, "1.5": 1.5, "300s": 300, "5m": 300, "5 min": 300, "2h": 7200, "1h30m": 5400, "500ms": 0.5}


@pytest.mark.parametrize("text", TIMES)
def test_durations_are_read_as_people_write_them(text: str) -> None:
    """A number alone is of seconds."""
    assert parse_seconds("x", text) == TIMES[text]
    assert Environment.read({"SEMID_LOCK_TIMEOUT": text}).lock_timeout == TIMES[text]


MAPPED = {"": True, "1": True, "True": True, "yes": True, "on": True}
COPIED = dict.fromkeys(["0", "false", " FALSE ", "no", "off", "Off"], False)


@pytest.mark.parametrize(("value", "mapped"), [*MAPPED.items(), *COPIED.items()])
def test_words_say_whether_files_are_mapped(value: str, mapped: bool) -> None:
    """The words of the gate."""
    environment = Environment.read({"SEMID_MMAP": value})
    assert environment.mmap is mapped
    assert environment.misread == ()


def test_a_slip_is_logged_once_a_process(caplog: pytest.LogCaptureFixture) -> None:
    """A loop over a door does not fill the log."""
    with caplog.at_level("WARNING", "semid_dataset"):
        for _ in range(3):
            with pytest.warns(SemanticIdWarning):
                Context.at_door(variables={"SEMID_MMAP": "by chance"})
    assert caplog.text.count("SEMID_MMAP='by chance'") == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [("1073741824", 1 << 30), ("1G", 1 << 30), ("1.5 GiB", 3 << 29), (" 512mb ", 1 << 29), ("2048K", 2 << 20)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    """Units are powers of two."""
    assert parse_bytes("--memory-limit", text) == size
    assert Environment.read({"SEMID_MEMORY_LIMIT": text}).memory_limit == size


@pytest.mark.parametrize("text", ["0", "-1G", "1023K", "much", "1X", "G", "1e9", "nan", "9" * 400])
def test_a_memory_limit_that_is_none_is_refused(text: str) -> None:
    """By the name under which it was given; as a variable it counts as unset."""
    with pytest.raises(ConfigError, match="--memory-limit"):
        parse_bytes("--memory-limit", text)
    environment = Environment.read({"SEMID_MEMORY_LIMIT": text})
    assert environment.memory_limit is None
    assert [slip.variable for slip in environment.misread] == ["SEMID_MEMORY_LIMIT"]


def test_a_limit_that_a_program_names_counts_more_than_the_variable() -> None:
    """The variable counts more than the default."""
    environment = Environment.read({"SEMID_MEMORY_LIMIT": "2G"})
    assert environment.memory_for(SemanticIdConfig()) == 2 << 30
    assert environment.memory_for(SemanticIdConfig(memory_limit=5 << 20)) == 5 << 20
    assert Environment.read({}).memory_for(SemanticIdConfig()) == 1 << 30


# --- at the doors ---

SLIPS = {"SEMID_LOCK_TIMEOUT": "a while", "SEMID_MEMORY_LIMIT": "lots", "SEMID_LOCK_DEADLINE": "-5", "SEMID_MMAP": "2"}


@pytest.mark.parametrize("name", SLIPS)
def test_doors_go_on_where_a_variable_is_not_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Said by name; real IDs, whatever the door. An explicit command names it and does nothing."""
    data = make_data(tmp_path / "data")
    trained = SmallDataset(data).semantic_id_dict
    assert trained.path is not None
    monkeypatch.setenv(name, SLIPS[name])
    said = f"{name}='{SLIPS[name]}' is not understood"
    with pytest.warns(SemanticIdWarning, match=said):
        assert SmallDataset(data).semantic_id_dict.digest == trained.digest
    with pytest.warns(SemanticIdWarning, match=said):
        assert SemanticIdTable.open(trained.path).digest == trained.digest
    with pytest.warns(SemanticIdWarning) as warned:
        assert generate_semantic_ids_on_demand(tmp_path / "nothing", ["81"]).status == "default"
    assert any(said in str(warning.message) for warning in warned)
    with pytest.raises(ConfigError, match=said):
        generate_semantic_ids(data)


@pytest.mark.parametrize(
    "look",
    [
        lambda table: table[1],
        lambda table: table[99],
        lambda table: table.get(99),
        lambda table: 99 in table,
        lambda table: table.codes(list(range(1000))),
        lambda table: table.coverage(list(range(1000, 2000))),
        lambda table: table.metrics(),
        lambda table: table.items_of([1]),
        repr,
    ],
)
def test_a_look_up_reads_no_environment(
    monkeypatch: pytest.MonkeyPatch, look: Callable[[SemanticIdTable], object]
) -> None:
    """It answers from what is there, also where it has something to warn of."""
    table = SemanticIdTable.from_mapping({1: [1, 2], 2: [3, 4]})
    monkeypatch.setattr(Environment, "read", lambda *_: pytest.fail("the environment was read"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SemanticIdWarning)
        look(table)


@pytest.mark.parametrize(
    "arguments", [(None, ["81"]), (5, ["81"]), ("/nowhere", None), ("/nowhere", 5.0), ("\0", "81")]
)
def test_the_original_function_never_raises(arguments: tuple[Any, Any]) -> None:
    """Whatever it is called with: default IDs, and the reason."""
    with pytest.warns(SemanticIdWarning):
        table = generate_semantic_ids_on_demand(*arguments)
    assert table.status == "default"
    assert table.reason
