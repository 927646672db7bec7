"""Rows 22, 28 to 30: memory that does not suffice, data that says little, names that lead elsewhere, interruptions."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faultkit import checksums
from world import ITEM0, SMALL, SmallDataset, SmallMixinDataset, vectors_of, write_embeddings

from semid_dataset import _process
from semid_dataset.codec import _rqvae
from semid_dataset.codec import train as training
from semid_dataset.errors import SemanticIdWarning


def quietly(data: Path, *features: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SemanticIdWarning)
        return SmallDataset(data, features or ("81",)).semantic_id_dict


@pytest.mark.parametrize(("failures", "ending"), [(1, "trained"), (2, "trained"), (9, "default")])
def test_out_of_memory_halves_the_batch_then_takes_the_cpu_and_says_so(
    data: Path, failures: int, ending: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Row 29: the error is injected; a third one ends in default IDs with the reason."""
    attempts: list[tuple[str, int]] = []
    fit = _rqvae.RQVAE.fit

    def scarce(trainer: _rqvae.RQVAE, *args: Any, device: str, **kwargs: Any) -> Any:
        attempts.append((device, trainer.batch_size))
        if len(attempts) <= failures:
            raise training.OutOfMemory("CUDA out of memory. Tried to allocate 20 GiB")
        return fit(trainer, *args, device="cpu", **kwargs)

    monkeypatch.setattr(training, "chosen_device", lambda wanted: "cuda")
    monkeypatch.setattr(_rqvae.RQVAE, "fit", scarce)
    with caplog.at_level("INFO", "semid_dataset"):
        table = quietly(data)
    assert table.status == ending
    expected = [("cuda", SMALL.batch_size), ("cuda", SMALL.batch_size // 2), ("cpu", SMALL.batch_size)]
    assert attempts == expected[: failures + 1]
    assert caplog.text.count("Out of memory on cuda") == min(failures, 2)
    assert ending == "trained" or "memory" in table.reason


LITTLE = {
    "one item": np.ones((1, 4)),
    "fewer items than codes": vectors_of(5),
    "one dimension": np.linspace(0, 1, 40)[:, None],
    "enormous": vectors_of(20) * 1e18,
    "tiny": vectors_of(20) * 1e-25,
}


@pytest.mark.parametrize("vectors", LITTLE.values(), ids=LITTLE)
def test_little_or_odd_data_still_gives_every_item_an_id(tmp_path: Path, vectors: np.ndarray) -> None:
    """Row 30: and adds one more later."""
    write_embeddings(tmp_path, vectors.astype(np.float32))
    table = quietly(tmp_path)
    assert table.status == "trained"
    assert len(set(map(tuple, table.values()))) == len(vectors)
    write_embeddings(tmp_path, np.concatenate([vectors, vectors[:1]]).astype(np.float32))
    more = quietly(tmp_path)
    assert {item: more[item] for item in table} == table.to_dict()
    assert len(set(map(tuple, more.values()))) == len(vectors) + 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_have_the_default_id(tmp_path: Path, bad: float) -> None:
    """Row 30: the others have real ones."""
    vectors = vectors_of(60)
    vectors[7, 3] = bad
    write_embeddings(tmp_path, vectors)
    table = quietly(tmp_path)
    assert (table.status, len(table), table[ITEM0 + 7]) == ("trained", 59, [0, 0, 0])


NOTHING = {
    "none": np.zeros((0, 8)),
    "all NaN": np.full((9, 8), np.nan),
    "all equal": np.ones((30, 4)),
    "all zero": np.zeros((30, 4)),
    "one dimension, all equal": np.ones((3, 1)),
    "collapsed": vectors_of(20) * 1e-31,
    "denormal": vectors_of(20) * 1e-40,
}


@pytest.mark.parametrize("vectors", NOTHING.values(), ids=NOTHING)
def test_no_usable_item_gives_default_ids_with_the_reason(tmp_path: Path, vectors: np.ndarray) -> None:
    """Rows 30 and 47: never a crash, nothing published."""
    write_embeddings(tmp_path, vectors.astype(np.float32))
    table = quietly(tmp_path)
    assert (table.status, len(table)) == ("default", 0)
    assert table.reason
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("feature", ["../../etc", "81/../81", "/etc/passwd", "", "*"])
def test_feature_ids_that_lead_elsewhere_are_refused(data: Path, feature: str) -> None:
    """Row 28: the reason names the id, and nothing is read or written."""
    before = checksums(data.parent)
    table = quietly(data, feature)
    assert table.status == "default"
    assert repr(feature) in table.reason
    assert checksums(data.parent) == before


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, RuntimeError, MemoryError])
def test_a_training_that_is_stopped_leaves_the_lock_free_and_nothing_cached(
    data: Path, stop: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 22: in the middle of its epochs; the next access, in another process or here, trains."""
    dataset = SmallMixinDataset(data)

    def interrupt(*_: Any, **__: Any) -> None:
        raise stop("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(_rqvae, "_epochs", interrupt)
        if issubclass(stop, Exception):
            assert quietly(data).status == "default"
        else:
            with pytest.raises(stop):
                dataset.prepare_semantic_ids()
    assert not list(data.rglob("*.safetensors"))
    assert not (data / "semantic_id_dict.json").exists()
    assert _process.in_loader_worker() is False
    assert dataset.prepare_semantic_ids().status == "trained"
