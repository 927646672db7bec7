"""Training: better than its start or not at all, reproducible, and at ease with strange input."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from semid_dataset.codec import _codebooks, _rqvae
from semid_dataset.codec import _kmeans as kmeans_room
from semid_dataset.codec import train as room
from semid_dataset.codec._rqvae import RQVAE
from semid_dataset.codec._search import BeamSearch
from semid_dataset.codec._threads import isolated
from semid_dataset.codec.residual import ResidualQuantizer
from semid_dataset.codec.train import train
from semid_dataset.config import SemanticIdConfig
from semid_dataset.errors import ConfigError, EmbeddingError, TrainingError
from semid_dataset.progress import Listener, Progress


def mixture(n: int = 2000, dim: int = 8, seed: int = 0) -> NDArray[np.float32]:
    """Return Gaussians around Gaussians around Gaussians."""
    random = np.random.default_rng(seed)
    top = random.standard_normal((8, 1, dim))
    leaves = (top + 0.3 * random.standard_normal((8, 8, dim))).reshape(-1, dim)
    return (leaves[random.integers(0, 64, n)] + 0.1 * random.standard_normal((n, dim))).astype(np.float32)


def small(**settings: Any) -> SemanticIdConfig:
    defaults = {"codebook_size": 16, "num_quantizers": 3, "num_epochs": 3, "algorithm": "rqvae", "device": "cpu"}
    return SemanticIdConfig(**{**defaults, **settings})


def relative_error(quantizer: ResidualQuantizer, vectors: NDArray[Any]) -> float:
    rebuilt = quantizer.decode(quantizer.encode(vectors))
    return float(np.square(vectors - rebuilt).sum() / np.square(vectors - vectors.mean(0)).sum())


def digest(quantizer: ResidualQuantizer) -> bytes:
    arrays, description = quantizer.to_arrays()
    return b"".join(arrays[name].tobytes() for name in sorted(arrays)) + repr(description).encode()


def curved(n: int) -> NDArray[np.float32]:
    """Return points on a curved surface: what a network can learn and a sum of codewords cannot."""
    angles = np.random.default_rng(0).uniform(-2, 2, (n, 2))
    x, y = angles.T
    return np.stack([np.sin(2 * x), np.cos(2 * x), x * y, np.sin(3 * y), y**2, x], 1).astype(np.float32)


@pytest.mark.parametrize("algorithm", ["rqvae", "rqkmeans"])
@pytest.mark.parametrize("dim", [8, 70])
def test_items_and_unseen_items_are_written_well(algorithm: str, dim: int) -> None:
    """Both algorithms and both starts, below 64 dims and above; every code is used."""
    vectors = mixture(dim=dim)
    trained = train(vectors[:1800], small(algorithm=algorithm))
    assert relative_error(trained.quantizer, vectors[:1800]) < 0.1
    assert relative_error(trained.quantizer, vectors[1800:]) < 0.15
    codes = trained.quantizer.encode(vectors)
    assert all(len(np.unique(codes[:, level])) == 16 for level in range(3))


@pytest.mark.parametrize("vectors", [mixture(600), curved(1500)])
def test_the_autoencoder_never_ends_worse_than_its_start(vectors: NDArray[np.float32]) -> None:
    """On held-out items; with a senseless learning rate too."""
    for lr in (1e-3, 1.0):
        held_out = train(vectors, small(lr=lr, num_epochs=4)).held_out
        assert held_out["end"] <= held_out["start"]
        assert held_out["items"] == len(vectors) // 20 - len(vectors) // 20 // 2  # the others have chosen


def test_networks_that_pay_are_kept() -> None:
    """On a curved surface they lower the held-out error; the quantizer then carries them."""
    trained = train(curved(1500), small(codebook_size=8, num_quantizers=2, num_epochs=60, lr=1e-2, batch_size=128))
    assert trained.held_out["end"] < trained.held_out["start"] * 0.995
    assert trained.quantizer.encoder is not None
    assert trained.quantizer.decoder is not None
    arrays, description = trained.quantizer.to_arrays()
    again = ResidualQuantizer.from_arrays(arrays, description)
    assert np.array_equal(again.encode(curved(100)), trained.quantizer.encode(curved(100)))


@pytest.mark.parametrize("algorithm", ["rqvae", "rqkmeans"])
def test_equal_seeds_give_equal_quantizers(algorithm: str) -> None:
    """Bit for bit, and the global generators are neither read nor moved."""
    vectors = mixture(500)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first = train(vectors, small(algorithm=algorithm, seed=5))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == numpy_state
    torch.rand(3)
    second = train(vectors, small(algorithm=algorithm, seed=5))
    assert digest(first.quantizer) == digest(second.quantizer)
    assert first.curve == second.curve
    assert digest(train(vectors, small(algorithm=algorithm, seed=6)).quantizer) != digest(first.quantizer)


def test_threads_and_default_types_are_left_alone() -> None:
    """A library does not change them for the program that uses it."""
    before = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    vectors = mixture(200)
    copy = vectors.copy()
    train(vectors, small())
    assert before == (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())
    assert np.array_equal(vectors, copy)


STRANGE: dict[str, NDArray[Any]] = {
    "one item": np.ones((1, 5), dtype=np.float32),
    "two items": np.eye(2, dtype=np.float32),
    "one dimension": np.linspace(0, 1, 60, dtype=np.float32)[:, None],
    "fewer items than codes": mixture(9, 70),
    "huge": mixture(60) * np.float32(1e15),
    "tiny": mixture(60) * np.float32(1e-15),
    "far from the origin": mixture(60) + np.float32(1000),
    "half precision": mixture(60).astype(np.float16),
    "double precision": mixture(60).astype(np.float64),
}


@pytest.mark.parametrize("algorithm", ["rqvae", "rqkmeans"])
@pytest.mark.parametrize("name", STRANGE)
def test_strange_input_is_no_error(name: str, algorithm: str) -> None:
    """Codes come out, and vectors that are numbers."""
    vectors = STRANGE[name]
    trained = train(vectors, small(algorithm=algorithm, num_epochs=1))
    codes = trained.quantizer.encode(vectors)
    assert codes.shape == (len(vectors), 3)
    rebuilt = trained.quantizer.decode(codes)
    assert np.isfinite(rebuilt).all()
    assert (
        np.abs(rebuilt - vectors).max() <= np.abs(vectors - vectors.mean(0)).max() * 0.5 + np.abs(vectors).max() * 1e-3
    )


@pytest.mark.parametrize("sizes", [(2,), (2, 9, 3), (4096, 2), (2,) * 8, (300, 5, 300)])
def test_any_number_of_levels_and_unequal_sizes(sizes: tuple[int, ...]) -> None:
    """One level to eight, two codes to 4,096, more codes than items."""
    vectors = mixture(120)
    trained = train(vectors, small(num_quantizers=len(sizes), codebook_size=sizes, num_epochs=1))
    assert trained.quantizer.codebook_sizes == sizes
    codes = trained.quantizer.encode(vectors)
    assert (codes < np.array(sizes)).all()
    assert relative_error(trained.quantizer, vectors) < 1


def test_epochs_are_told_and_counted() -> None:
    """After every epoch; the heartbeat comes at least as often."""
    told: list[tuple[int, int, float]] = []
    heartbeats: list[int] = []

    class Heard(Listener):
        def epoch(self, number: int, epochs: int, loss: float) -> None:
            told.append((number, epochs, loss))

        def advance(self, done: int) -> None:
            heartbeats.append(done)

    config = small(num_epochs=3)
    trained = train(mixture(300), config, progress=Progress(Heard()))
    assert [epoch for epoch, _, _ in told] == list(range(1, trained.stopped_at + 1))
    assert {epochs for _, epochs, _ in told} == {3}
    assert [loss for _, _, loss in told] == trained.curve
    assert len(heartbeats) >= len(told)


def test_no_epochs_is_k_means() -> None:
    """`num_epochs=0` leaves the codebooks as "rqkmeans" makes them."""
    vectors = mixture(300)
    none, kmeans = train(vectors, small(num_epochs=0)), train(vectors, small(algorithm="rqkmeans"))
    assert digest(none.quantizer) == digest(kmeans.quantizer)


@pytest.mark.parametrize("shape", [(0, 4), (4,), (4, 0), (2, 2, 2)])
def test_nothing_to_train_on_is_an_error(shape: tuple[int, ...]) -> None:
    """No items, no dims, or not a matrix."""
    with pytest.raises(EmbeddingError, match="shape"):
        train(np.zeros(shape, dtype=np.float32), small())


def test_the_first_row_that_is_not_finite_is_named() -> None:
    """Before anything is trained."""
    vectors = mixture(50)
    vectors[7, 2] = np.nan
    vectors[20, 0] = np.inf
    with pytest.raises(EmbeddingError, match="Row 7 "):
        train(vectors, small())


def out_of_memory(times: int, seen: list[tuple[str, int]]) -> Callable[..., Any]:
    """Return a `fit` that runs out of memory so many times, and writes down device and batch of every attempt."""
    real = RQVAE.fit

    def attempt(trainer: RQVAE, *args: Any, **settings: Any) -> Any:
        seen.append((settings["device"], trainer.batch_size))
        if len(seen) <= times:
            raise room.OutOfMemory("injected")
        return real(trainer, *args, **settings)

    return attempt


def test_out_of_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One warning says so, and training succeeds."""
    seen: list[tuple[str, int]] = []
    monkeypatch.setattr(RQVAE, "fit", out_of_memory(1, seen))
    trained = train(mixture(100), small(batch_size=64))
    assert seen == [("cpu", 64), ("cpu", 32)]
    assert trained.device == "cpu"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Out of memory on cpu" in caplog.text


def test_out_of_memory_on_the_gpu_ends_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller batch first, then the CPU with the whole one."""
    seen: list[tuple[str, int]] = []
    monkeypatch.setattr(room, "chosen_device", lambda wanted: wanted)
    monkeypatch.setattr(RQVAE, "fit", out_of_memory(2, seen))
    assert train(mixture(100), small(batch_size=64, device="cuda:0")).device == "cpu"
    assert seen == [("cuda:0", 64), ("cuda:0", 32), ("cpu", 64)]


def test_out_of_memory_everywhere_is_a_training_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not torch's own error: whoever degrades catches ours."""
    monkeypatch.setattr(RQVAE, "fit", out_of_memory(99, []))
    with pytest.raises(TrainingError, match="ran out of memory"):
        train(mixture(100), small())


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    """Before anything is trained; torch's own words differ from case to case."""
    if device.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    with pytest.raises(ConfigError, match=f"no device '{device}'"):
        train(mixture(50), small(device=device))


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a GPU: numbers read, and results whose size depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name
        masked = name.startswith("aten::index") and any(
            isinstance(index, torch.Tensor) and index.dtype is torch.bool for index in (args[1] if args[1:] else ())
        )
        if masked or name in {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"}:
            self.count += 1
        return func(*args, **(kwargs or {}))


def waits(monkeypatch: pytest.MonkeyPatch, vectors: NDArray[np.float32], config: SemanticIdConfig) -> int:
    """Return how often a training would make the host wait for a GPU."""
    monkeypatch.setattr(kmeans_room, "CODES_SUMMED", 1 << 30)  # as on a GPU: all codes at once
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # modes are seen by their own thread only
    try:
        with isolated(), Waits() as mode:  # a caller's modes end at the door
            train(vectors, config)
        return mode.count
    finally:
        torch.set_num_threads(before)


def test_no_step_of_an_epoch_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen steps an epoch read as few numbers back as one does."""
    monkeypatch.setattr(_rqvae, "WORTH", -1.0)
    monkeypatch.setattr(_rqvae, "PATIENCE", 99)
    vectors = mixture(1000)
    few = waits(monkeypatch, vectors, small(batch_size=950))
    assert waits(monkeypatch, vectors, small(batch_size=59)) == few
    assert waits(monkeypatch, vectors, small(batch_size=950, num_epochs=6)) > few  # the loss of every epoch is read


@pytest.mark.parametrize("dim", [8, 70])
def test_no_step_of_k_means_waits_for_the_device(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a draw of the first codewords nor a round of Lloyd's reads a number back."""
    points = torch.from_numpy(mixture(600, dim))
    monkeypatch.setattr(kmeans_room, "CODES_SUMMED", 1 << 30)
    with isolated(), Waits() as mode:
        kmeans_room.kmeans(points, 32, torch.Generator().manual_seed(0))
    assert mode.count == 0


def test_a_callers_autocast_changes_no_bit() -> None:
    """Datasets are made within it, too: neither codebooks nor codes are rounded, nor is it an error."""
    vectors = mixture(500)
    plain = train(vectors, small()).quantizer
    with torch.autocast("cpu", torch.bfloat16):
        within = train(vectors, small()).quantizer
        codes = within.encode(vectors)
        rebuilt = within.decode(codes)
        again = ResidualQuantizer.from_arrays(*plain.to_arrays())
    assert digest(within) == digest(plain)
    assert np.array_equal(codes, plain.encode(vectors))
    assert np.array_equal(rebuilt, plain.decode(codes))
    assert np.array_equal(again.encode(vectors), codes)


def test_networks_learn_in_bfloat16_and_codes_stay_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU that has it: networks pay as in float32, and codes are those of the search in float32."""
    vectors = curved(1500)
    config = small(codebook_size=8, num_quantizers=2, num_epochs=60, lr=1e-2, batch_size=128)
    whole = train(vectors, config).held_out
    monkeypatch.setattr(_rqvae, "_has_bfloat16", lambda device: True)
    trained = train(vectors, config)
    assert trained.quantizer.encoder is not None
    assert trained.held_out["end"] < whole["start"] * 0.995
    assert trained.held_out["end"] < whole["end"] * 1.02
    arrays, description = trained.quantizer.to_arrays()
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    again = ResidualQuantizer.from_arrays(arrays, description)
    assert np.array_equal(again.encode(vectors), trained.quantizer.encode(vectors))


def test_a_refit_never_raises_the_error_for_its_codes() -> None:
    """Least squares: what the search then finds is at least as good, so errors fall from round to round."""
    curve = train(mixture(1500), small(algorithm="rqkmeans")).curve
    assert curve == sorted(curve, reverse=True)


def test_a_code_that_nobody_uses_gets_an_item_to_serve() -> None:
    """The item that is written worst: its new word makes it exact."""
    codebooks = [torch.tensor([[0.0], [50.0]]), torch.tensor([[0.0], [60.0], [70.0]])]
    points = torch.tensor([[0.0], [3.0], [2.0], [9.0]])
    codes = torch.zeros(4, 2, dtype=torch.int64)
    first, second = _codebooks._revive(codebooks, codes, points.clone())
    assert first[:, 0].tolist() == [0, 9]
    assert second[:, 0].tolist() == [0, 3, 2]


def test_more_items_than_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of them is trained on, drawn by the seed; so is what a round and an epoch look at."""
    monkeypatch.setattr(_codebooks, "MOST_ITEMS", 300)
    monkeypatch.setattr(_codebooks, "REFIT_ITEMS", 200)
    monkeypatch.setattr(_rqvae, "EPOCH_ITEMS", 100)
    vectors = mixture(1000)
    first, second = train(vectors, small()), train(vectors, small())
    assert digest(first.quantizer) == digest(second.quantizer)
    assert relative_error(first.quantizer, vectors) < 0.3


def test_a_refit_is_the_least_squares_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    """With enough sweeps the error for the codes that were found is the least that any codebooks reach."""
    monkeypatch.setattr(_codebooks, "SWEEPS", 200)
    monkeypatch.setattr(_codebooks, "RIDGE", 1e-9)
    points = torch.from_numpy(mixture(400))
    generator = torch.Generator().manual_seed(0)
    codebooks = [points[torch.randperm(len(points), generator=generator)[:8]] / (level + 1) for level in range(3)]
    codes = BeamSearch(codebooks, 4, _codebooks.PREFIX_WEIGHT).blocks(points, 1)[:, 0]
    refitted, _ = _codebooks.refit(points, codebooks, 4, 1)
    chosen = torch.nn.functional.one_hot(codes + torch.tensor([0, 8, 16]), 24).sum(1).double()
    best = torch.linalg.lstsq(chosen, points.double(), driver="gelsd").solution
    least = (points - chosen @ best).square().sum()
    found = (points - BeamSearch(refitted, 1).sums(codes)).square().sum()
    assert float(found) == pytest.approx(float(least), rel=1e-3)


@pytest.mark.parametrize("algorithm", ["rqvae", "rqkmeans"])
@pytest.mark.parametrize("dims", [12, 80])
def test_the_number_of_threads_does_not_change_a_bit(
    algorithm: str, dims: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal seeds give equal digests with one thread and with three: nothing is split by how many there are."""
    monkeypatch.setattr(_rqvae, "SLICE_PRODUCTS", 1 << 12)
    monkeypatch.setattr(_rqvae, "WORTH", -1.0)  # the networks' state counts, better or not
    vectors = mixture(3000, dim=dims)
    digests = set()
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            trained = train(vectors, small(algorithm=algorithm, batch_size=512, num_epochs=2))
            digests.add((digest(trained.quantizer), trained.quantizer.encode(vectors).tobytes()))
    finally:
        torch.set_num_threads(before)
    assert len(digests) == 1


@pytest.mark.parametrize("dim", [1, 17, 40])
def test_sums_in_pieces_are_the_same(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean and spread look at a few columns or rows at a time, revived codewords at a few items."""
    points = torch.randn(1000, dim, generator=torch.Generator().manual_seed(0)) + 3
    whole, spread = points.mean(0, dtype=torch.float64).float(), points.square().mean(dtype=torch.float64).sqrt()
    books = [points[:20].clone() / 2, points[20:40].clone() / 2]
    codes = torch.arange(1000)[:, None] % torch.tensor([17, 19])
    revived = _codebooks._revive(books, codes, points)
    monkeypatch.setattr(_codebooks, "COPIED", 1 << 13)
    monkeypatch.setattr(_codebooks, "ERROR_ROWS", 64)
    assert torch.equal(_codebooks._mean(points), whole)
    assert _codebooks._spread(points) == pytest.approx(float(spread), rel=1e-12)
    again = _codebooks._revive(books, codes, points)
    assert all(torch.equal(one, other) for one, other in zip(revived, again, strict=True))
    assert not torch.equal(torch.cat(revived), torch.cat(books))
    left = _codebooks._left_over(points.clone(), BeamSearch(books, 1), codes)
    assert torch.equal(left, points - BeamSearch(books, 1).sums(codes))


def test_no_level_serves_what_no_item_would_choose() -> None:
    """Where clusters lie far apart, a second level fitted on the residuals of far-off sums would serve nobody."""
    rng = np.random.default_rng(0)
    centres = np.zeros((1, 16))
    for branches, spread in ((10, 1.0), (6, 0.5), (4, 0.25)):
        centres = np.repeat(centres, branches, axis=0)
        centres = centres + spread * rng.normal(size=centres.shape)
    points = centres[rng.integers(len(centres), size=1_500)] + 0.1 * rng.normal(size=(1_500, 16))
    config = SemanticIdConfig(num_quantizers=3, codebook_size=64, algorithm="rqkmeans")
    codes = train(points.astype(np.float32), config).quantizer.encode(points.astype(np.float32))
    for level in range(3):
        shares = np.bincount(codes[:, level], minlength=64) / len(codes)
        shares = shares[shares > 0]
        assert np.exp(-(shares * np.log(shares)).sum()) > 0.6 * 64


def test_auto_leaves_networks_alone_where_codebooks_already_overfit() -> None:
    """Few items a codeword: no epoch is run, what was measured is said, and the codebooks are those of rqkmeans."""
    vectors = np.random.default_rng(0).standard_normal((600, 12), dtype=np.float32)
    trained, alone = (train(vectors, small(algorithm=name)) for name in ("auto", "rqkmeans"))
    assert trained.choices["networks"] == "not tried"
    assert trained.choices["algorithm"] == "rqkmeans"
    assert trained.choices["overfit"] > 0.08
    assert digest(trained.quantizer) == digest(alone.quantizer)


def test_auto_trains_networks_where_items_are_many_and_keeps_what_judges_like() -> None:
    """A curved surface and few codes: unseen items are written as well as known ones, and networks bring more."""
    settings = {"codebook_size": 8, "num_quantizers": 2, "num_epochs": 20, "lr": 5e-3, "batch_size": 128}
    trained = train(curved(3000), small(algorithm="auto", **settings))
    assert trained.choices["networks"] == "kept"
    assert trained.choices["algorithm"] == "rqvae"
    assert trained.stopped_at <= 8
    assert trained.held_out["end"] < trained.held_out["start"] * 0.995


def test_networks_that_were_thrown_away_are_said(caplog: pytest.LogCaptureFixture) -> None:
    """In the figures and in one line: "rqvae" with a senseless learning rate has the codebooks of "rqkmeans"."""
    with caplog.at_level("INFO", "semid_dataset"):
        trained = train(mixture(600), small(lr=1.0, algorithm="rqvae"))
    assert trained.choices["networks"] == "thrown away"
    assert trained.choices["algorithm"] == "rqkmeans"
    assert "these: thrown away" in caplog.text
    assert trained.quantizer.encoder is None


def test_items_that_judge_have_chosen_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the reach nor a state of the networks: choices are asked of other items than what is reported."""
    asked: list[tuple[int, int]] = []
    merit, judged = _codebooks._merit, _rqvae.judged
    chosen: set[tuple[float, ...]] = set()
    reported: set[tuple[float, ...]] = set()
    monkeypatch.setattr(
        _codebooks,
        "_merit",
        lambda points, books: (chosen.update(map(tuple, points.tolist())), merit(points, books))[1],
    )

    def noted(points: torch.Tensor, state: ResidualQuantizer) -> float:
        asked.append((len(points), state.beam))
        (reported if len(asked) in (1, 6) else chosen).update(map(tuple, points.tolist()))
        return judged(points, state)

    monkeypatch.setattr(_rqvae, "judged", noted)
    train(mixture(2000), small(num_epochs=3))
    assert len(asked) == 6  # the start; the start and three epochs among those that choose; what came of it
    assert len(reported) == 50
    assert not chosen & reported


@pytest.mark.parametrize("far", [True, False])
def test_the_reach_is_chosen_by_the_data(far: bool) -> None:
    """Where clusters are far apart near sums alone count; both errors are told."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((4000, 24), dtype=np.float32)
    if far:
        vectors = 30 * random.standard_normal((64, 24), dtype=np.float32)[random.integers(0, 64, 4000)] + vectors
    choices = train(vectors, small(algorithm="rqkmeans")).choices
    assert set(choices["tried"]) == {"reach 0.1", "reach 1"}
    assert choices["reach"] == (0.1 if far else 1.0)
