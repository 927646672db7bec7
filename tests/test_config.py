"""Settings check themselves, and the environment is read the way the documentation says."""

import dataclasses

import pytest

from semid_dataset.config import Environment, Gate, Identity, SemanticIdConfig, parse_bytes
from semid_dataset.errors import ConfigError


def test_defaults_are_the_promised_ones() -> None:
    """Callers of the original get its settings without naming any."""
    config = SemanticIdConfig()
    assert (config.num_quantizers, config.codebook_sizes, config.commitment_cost) == (4, (256,) * 4, 0.25)
    assert (config.lr, config.num_epochs, config.batch_size) == (1e-3, 20, 1024)
    assert config.capacity == 256**4 - 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_quantizers", 0),
        ("num_quantizers", True),
        ("num_quantizers", 2.0),
        ("codebook_size", 1),
        ("codebook_size", (256, 256)),
        ("codebook_size", (256, 256, 256, 1)),
        ("commitment_cost", -0.1),
        ("commitment_cost", float("nan")),
        ("lr", 0),
        ("lr", float("inf")),
        ("num_epochs", -1),
        ("batch_size", 0),
        ("algorithm", "kmeans"),
        ("fusion", "sum"),
        ("unique", 1),
        ("device", ""),
        ("seed", -1),
        ("lock_timeout", 0),
        ("memory_limit", 0),
        ("memory_limit", 1e9),
    ],
)
def test_an_impossible_value_is_refused_by_name(name: str, value: object) -> None:
    """The message names the setting, so that it can be found in a long command."""
    with pytest.raises(ConfigError, match=name):
        SemanticIdConfig(**{name: value})  # type: ignore[arg-type]


def test_each_level_may_have_a_size_of_its_own() -> None:
    """Lists, as JSON brings them, become tuples, so that the value stays hashable."""
    config = SemanticIdConfig(num_quantizers=2, codebook_size=[4, 8])  # type: ignore[arg-type]
    assert config.codebook_sizes == (4, 8)
    assert hash(config) == hash(SemanticIdConfig(num_quantizers=2, codebook_size=(4, 8)))


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


def test_identity_ignores_how_training_went() -> None:
    """Asking for the CPU, or for another seed, must not retrain."""
    features = [("81", 32)]
    base = SemanticIdConfig()
    other = SemanticIdConfig(
        lr=0.1, num_epochs=1, batch_size=3, seed=9, device="cpu", algorithm="rqkmeans", unique=False
    )
    assert Identity.of(base, features).digest == Identity.of(other, features).digest


@pytest.mark.parametrize(
    "other",
    [
        Identity.of(SemanticIdConfig(num_quantizers=3), [("81", 32)]),
        Identity.of(SemanticIdConfig(codebook_size=128), [("81", 32)]),
        Identity.of(SemanticIdConfig(), [("82", 32)]),
        Identity.of(SemanticIdConfig(), [("81", 64)]),
        Identity.of(SemanticIdConfig(), [("81", 32), ("82", 1024)]),
    ],
)
def test_identity_changes_with_what_an_id_means(other: Identity) -> None:
    """IDs of other levels, sizes or features are other IDs."""
    assert Identity.of(SemanticIdConfig(), [("81", 32)]).digest != other.digest


def test_identity_survives_its_file_form() -> None:
    """What is written into a table is what is compared later."""
    identity = Identity.of(SemanticIdConfig(fusion="concat"), [("82", 1024), ("81", 32)])
    assert Identity.from_dict(identity.to_dict()) == identity
    assert identity == Identity.of(SemanticIdConfig(fusion="concat"), [("81", 32), ("82", 1024)])


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


@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf"])
def test_a_lock_timeout_that_is_none_is_refused(value: str) -> None:
    """Waiting for ever, or not at all, is never what was meant."""
    with pytest.raises(ConfigError, match="SEMID_LOCK_TIMEOUT"):
        Environment.read({"SEMID_LOCK_TIMEOUT": value})


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
    """By the name under which it was given."""
    with pytest.raises(ConfigError, match="SEMID_MEMORY_LIMIT"):
        Environment.read({"SEMID_MEMORY_LIMIT": text})


def test_a_limit_that_a_program_names_counts_more_than_the_variable() -> None:
    """The variable counts more than the default."""
    environment = Environment.read({"SEMID_MEMORY_LIMIT": "2G"})
    assert environment.memory_for(SemanticIdConfig()) == 2 << 30
    assert environment.memory_for(SemanticIdConfig(memory_limit=5 << 20)) == 5 << 20
    assert Environment.read({}).memory_for(SemanticIdConfig()) == 1 << 30
