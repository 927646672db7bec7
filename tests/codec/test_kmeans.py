"""Codewords: nearest, reproducible, and there for every shape of input."""

import pytest
import torch

from semid_dataset.codec._kmeans import _scattered, assign, kmeans, sample, sums, tally


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clusters(dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points in eight tight clusters, and the clusters' centres."""
    centres = torch.randn(8, dim, generator=generator(1)) * 10
    points = centres.repeat(40, 1) + torch.randn(320, dim, generator=generator(2)) * 0.01
    return points, centres


@pytest.mark.parametrize("dim", [3, 100])
def test_tight_clusters_are_found(dim: int) -> None:
    """Both starts, k-means++ and progressive dimensions, put one codeword into each of eight clusters."""
    points, _ = clusters(dim)
    words = kmeans(points, 16, generator())
    error = (points - words[assign(points, words)]).square().sum()
    assert error / (points - points.mean(0)).square().sum() < 0.01


@pytest.mark.parametrize("dim", [3, 100])
def test_equal_seeds_give_equal_codewords(dim: int) -> None:
    """All randomness comes from the generator passed in; the global one is neither read nor moved."""
    points, _ = clusters(dim)
    state = torch.get_rng_state()
    first = kmeans(points, 8, generator(3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(kmeans(points, 8, generator(3)), first)
    assert not torch.equal(kmeans(points, 8, generator(4)), first)


def test_assign_takes_the_nearest_and_of_equals_the_lowest() -> None:
    """A point between two centroids, or at one that is there twice, goes to the lower number."""
    centroids = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 0.0], [9.0, 9.0]])
    points = torch.tensor([[1.0, 0.0], [2.0, 0.0], [8.0, 9.0]])
    assert assign(points, centroids).tolist() == [0, 1, 3]


def test_sums_equal_a_loop() -> None:
    """Codes without points sum to zero and count zero."""
    points = torch.randint(-9, 9, (50, 3), generator=generator()).float()
    codes = torch.randint(0, 6, (50,), generator=generator())
    codes[codes == 2] = 3
    total, counts = sums(points, codes, 7)
    for code in range(7):
        assert torch.equal(total[code], points[codes == code].sum(0))
        assert counts[code] == (codes == code).sum()


def test_the_number_of_threads_does_not_change_sums() -> None:
    """Each sum is taken in the order of the points, by one thread."""
    points = torch.randn(5000, 16, generator=generator())
    codes = torch.randint(0, 40, (5000,), generator=generator())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = sums(points, codes, 40)[0]
        torch.set_num_threads(2)
        two = sums(points, codes, 40)[0]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, two)


@pytest.mark.parametrize("dim", [1, 2, 70])
@pytest.mark.parametrize("points", [torch.zeros(1, 1), torch.zeros(30, 1), torch.arange(5.0)[:, None]])
def test_fewer_distinct_points_than_codes(points: torch.Tensor, dim: int) -> None:
    """Every point has a codeword of its own, and the spare ones are numbers too."""
    points = points.expand(-1, dim).contiguous()
    words = kmeans(points, 12, generator())
    assert words.shape == (12, dim)
    assert torch.isfinite(words).all()
    assert (points - words[assign(points, words)]).abs().max() < 1e-5


def test_sample_draws_without_repetition_in_order() -> None:
    """A sample of everything is everything."""
    points = torch.arange(100)[:, None]
    assert sample(points, 100, generator()) is points
    drawn = sample(points, 10, generator())[:, 0]
    assert len(set(drawn.tolist())) == 10
    assert torch.equal(drawn, drawn.sort().values)


def test_codes_are_counted_alike_on_every_device() -> None:
    """A GPU adds ones up where the CPU has a function of its own; codes that nobody has count zero."""
    codes = torch.randint(0, 40, (1000,), generator=generator())
    assert torch.equal(_scattered(codes, 50), tally(codes, 50))
    assert int(tally(codes, 50).sum()) == 1000
    assert torch.equal(_scattered(codes[:0], 3), torch.zeros(3, dtype=torch.int64))
