"""
A small next-item recommender, trained with semantic IDs and without: the same model, seed and settings.

Each is trained until it no longer gains on purchases that are neither trained on nor tested, and its best state is
the one that is tested: a comparison at a fixed number of epochs would flatter the one that learns faster.

A customer is the mean of what they took and the last of it; a product is an embedding of its own and,
with IDs, the sum of one embedding per code. Nothing else differs, so the difference is the IDs'.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from semid_dataset.demo.catalogue import Shop

__all__ = ["Comparison", "Slice", "compare", "interval"]

UNITS = 48
EPOCHS = 40  # at most
PATIENCE = 8  # epochs without a gain; the one without IDs gains nothing in its first few
BATCH = 512
LEARNING_RATE = 8e-3
DROPOUT = 0.3
FORGET = 0.2  # share of the products whose own embedding is left out in a step
TOP = 10
LENGTH = 10  # purchases that the recommender looks at
TAIL = 5  # purchases in training, at most, of a product in the tail
RESAMPLES = 1_000  # of the test customers, for the intervals


class Recommender(nn.Module):
    """Scores all products for histories (batch, length), padded with 0; products count from 1."""

    def __init__(self, products: int, codes: Tensor | None, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.product: nn.Embedding = nn.Embedding(products + 1, UNITS, padding_idx=0)
        self.levels: nn.ModuleList = nn.ModuleList(nn.Embedding(size, UNITS, padding_idx=0) for size in sizes)
        for embedding in (self.product, *self.levels):
            assert isinstance(embedding, nn.Embedding)
            nn.init.normal_(embedding.weight, std=0.05)
            nn.init.zeros_(embedding.weight[0])
        self.query: nn.Sequential = nn.Sequential(nn.Linear(2 * UNITS, UNITS), nn.ReLU(), nn.Linear(UNITS, UNITS))
        self.dropout: nn.Dropout = nn.Dropout(DROPOUT)
        self.register_buffer("codes", codes)

    def products(self, known: Tensor) -> Tensor:
        """Return all products' vectors, (products + 1, UNITS); `known` (products + 1, 1) blanks those with no past."""
        weight = self.product.weight * known
        if self.training:  # forgets some products at every step, so that codes are learned, too; the same without IDs
            weight = weight * (torch.rand(len(weight), 1) >= FORGET)
        vectors = weight
        if self.codes is not None:
            assert isinstance(self.codes, Tensor)
            for level, embedding in enumerate(self.levels):
                vectors = vectors + embedding(self.codes[:, level])
        return vectors

    def forward(self, histories: Tensor, known: Tensor) -> Tensor:
        """Return scores (batch, products + 1)."""
        vectors = self.products(known)
        taken = vectors[histories] * (histories > 0).unsqueeze(2)
        mean = taken.sum(1) / (histories > 0).sum(1, keepdim=True).clamp(min=1)
        query = self.query(self.dropout(torch.cat([mean, taken[:, -1]], dim=1)))
        scores: Tensor = query @ vectors.T
        return scores


@dataclass(frozen=True)
class Slice:
    """
    One kind of test customers, and who of them found what they took next among ten products.

    Attributes:
        name: what came next for them.
        without, with_ids: (customers of the slice,) whether the best ten of each recommender hold it.
    """

    name: str
    without: NDArray[np.bool_]
    with_ids: NDArray[np.bool_]


@dataclass(frozen=True)
class Comparison:
    """What the two recommenders found; `best` (customers, 10) are rows of products by the one with IDs, best first."""

    slices: tuple[Slice, ...]
    best: NDArray[np.int64]


def compare(
    shop: Shop, codes: NDArray[np.integer], sizes: tuple[int, ...], advance: Callable[[], object]
) -> Comparison:
    """
    Train both recommenders on all purchases but each customer's last two, and let them find the last one.

    The last but one chooses the epoch.

    A new product is looked for among the new ones: it has no past to win with against popular ones.

    Args:
        codes: (products, levels) of every product, shifted by one; 0 where it has no ID.
        sizes: rows of the embedding table of each level.
        advance: called after each epoch of either.
    """
    histories, targets = _pairs(shop)
    before_last = [history[:-1] for history in shop.histories]
    chosen_by, test = _beginnings(before_last), _beginnings(shop.histories)
    last = np.array([history[-1] for history in shop.histories])
    sold = np.bincount([row for history in before_last for row in history[:-1]], minlength=len(shop.items))
    known = torch.from_numpy(np.concatenate([[0.0], sold > 0])).float().unsqueeze(1)
    shifted = torch.from_numpy(np.concatenate([np.zeros((1, codes.shape[1])), codes])).long()
    best, best_new = {}, {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a model this small mostly waits for its threads
    try:
        for name, given, rows in (("without IDs", None, ()), ("with IDs", shifted, sizes)):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = Recommender(len(shop.items), given, rows)
                _train(model, histories, targets, known, chosen_by, advance)
            scores = _scores(model, test[0], known)
            best[name] = scores.topk(TOP).indices.numpy() - 1
            best_new[name] = scores.masked_fill(known.squeeze(1) > 0, -torch.inf).topk(TOP).indices.numpy() - 1
    finally:
        torch.set_num_threads(threads)

    def found(name: str, among: dict[str, NDArray[np.int64]], of: NDArray[np.bool_]) -> Slice:
        hits = {which: (rows == last[:, None]).any(1)[of] for which, rows in among.items()}
        return Slice(name, hits["without IDs"], hits["with IDs"])

    return Comparison(
        (
            found("any product", best, sold[last] > 0),
            found(f"one that sold 1 to {TAIL} times", best, (sold[last] > 0) & (sold[last] <= TAIL)),
            found(f"a new one, among the {int((sold == 0).sum())} new ones", best_new, sold[last] == 0),
        ),
        best["with IDs"],
    )


def interval(hits: NDArray[np.bool_], others: NDArray[np.bool_], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval, over customers, of the difference between two shares of hits."""
    difference = hits.astype(np.float64) - others
    rng = np.random.default_rng(seed)
    means = [difference[rng.integers(len(difference), size=len(difference))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _train(
    model: Recommender,
    histories: Tensor,
    targets: Tensor,
    known: Tensor,
    chosen_by: tuple[Tensor, Tensor],
    advance: Callable[[], object],
) -> None:
    """Train until what `chosen_by` holds is found no more often, and go back to the best epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(0)
    best, best_state, waited = -1.0, copy.deepcopy(model.state_dict()), 0
    for _ in range(EPOCHS):
        model.train()
        order = torch.randperm(len(targets), generator=generator)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            loss = nn.functional.cross_entropy(model(histories[rows], known)[:, 1:], targets[rows] - 1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        advance()
        top = _scores(model, chosen_by[0], known).topk(TOP).indices
        found = float((top == chosen_by[1][:, None]).any(1).float().mean())
        if found > best:
            best, best_state, waited = found, copy.deepcopy(model.state_dict()), 0
        else:
            waited += 1
            if waited == PATIENCE:
                break
    model.load_state_dict(best_state)


@torch.no_grad()
def _scores(model: Recommender, histories: Tensor, known: Tensor) -> Tensor:
    """Return scores (histories, products + 1); what was taken already scores nothing: nobody takes it twice here."""
    model.eval()
    scores = torch.cat([model(histories[start : start + BATCH], known) for start in range(0, len(histories), BATCH)])
    scores[:, 0] = -torch.inf
    return scores.scatter_(1, histories, -torch.inf)


def _padded(history: Sequence[int]) -> list[int]:
    taken = [row + 1 for row in history[-LENGTH:]]
    return [0] * (LENGTH - len(taken)) + taken


def _beginnings(histories: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Return each history but for its last purchase, and that one."""
    return torch.tensor([_padded(history[:-1]) for history in histories]), torch.tensor([h[-1] + 1 for h in histories])


def _pairs(shop: Shop) -> tuple[Tensor, Tensor]:
    """Return every beginning of a history but for its last two purchases, and what came next."""
    return _beginnings([history[:k] for history in shop.histories for k in range(2, len(history) - 1)])
