"""Settings check themselves."""

import pytest

from semid_dataset.config import Identity, SemanticIdConfig
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
