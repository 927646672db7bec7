"""
Whether the vectors of new items are such as the codebooks were made for.

A frozen quantizer encodes anything: vectors of another encoder, or such as nobody normalized, get IDs that mean
nothing. What tells is how far new items lie from their codes, held against items that were held out at the fit, and how
long their vectors are. Both are measured whenever a table grows, and stand in its history.

How the bounds were chosen (Beauty and Scientific titles x 384, Beauty x 32, TencentGR-style directories of one and two
features, mixtures and noise, 2 to 4 levels of 16 to 256 codes; error of new items over the held-out error):

    items of the same catalogue, of one, the other or both features    0.8 to 1.1 (1.2 to 1.8 times the error in sample)
    the same where sequences shaped the IDs                            1.1
    another catalogue by the same encoder                              1.9 to 2.3
    rotated, or with its dimensions in another order                   2.2 to 10, that is 0.4 to 1.6 of the variance
                                                                       (noise, which no encoder gives: 1.0 and 0.6)
    twice, twelve times as long                                        4 and more, 200 and more
    half, a tenth as long                                              0.2 to 2.6: their length tells, not their error

An item's own error spreads (its deviation is 0.2 to 0.5 of the mean, the largest of 60 was 3.7 times the mean), so few
items are judged with more room.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from semid_dataset._messages import tell
from semid_dataset.errors import ForeignVectorsError
from semid_dataset.table.figures import finite
from semid_dataset.table.table import SemanticIdTable

__all__ = ["Encoded", "Novelty", "check", "judge"]

FAR, FOREIGN = 1.5, 2.5  # times the error of held-out items
ROOM = 0.05  # of the variance; an error that grew by less harms nobody, however small it was
WAY = 2 / 3  # of that from the error of held-out items to 1: items of a new kind may well go half of it
FEW = 2.0  # over the root of the number of items: by how much more than many a few may be off
USELESS = 1.0  # the mean of all items would be as near
LONG, ENDLESS = 2.0, 4.0  # times as long, or as short, as the vectors of known items
# New items of which that many are short are refused; fewer may be such as have no text, say: a vector of zeros.
SHORT_ITEMS = 8
SAMPLE_ITEMS = 4096  # known items whose lengths are looked at


@dataclass(frozen=True)
class Encoded:
    """
    New items as a frozen quantizer encoded them.

    Attributes:
        codes: (n, levels), unique where the table's are.
        raw: (n, levels), before that.
        moved: items that uniqueness moved.
        squared, squared_raw: mean squared error of both, in the quantizer's space.
        energy: mean square of the vectors, there too.
    """

    codes: NDArray[Any]
    raw: NDArray[Any]
    moved: int
    squared: float
    squared_raw: float
    energy: float


@dataclass(frozen=True)
class Novelty:
    """
    How new items lie to those that codebooks were made for.

    Attributes:
        error: squared error of their raw codes over the variance at the fit.
        expected: the same of items held out at the fit, where there were some, else of those that were trained on.
        length: of their vectors (root mean square) over that of known items'.
        verdict: "near"; "far", which is said; "foreign", which is refused.
    """

    error: float
    expected: float
    length: float
    verdict: Literal["near", "far", "foreign"]

    def __str__(self) -> str:
        return (
            f"error {self.error:.3f} of the variance, {self.expected:.3f} at the fit; "
            f"vectors {self.length:.3g} times as long"
        )


def judge(base: SemanticIdTable, encoded: Encoded) -> Novelty | None:
    """Return how new items lie to those of a table; None where it does not say what its vectors were like."""
    variance = base.header.variance
    count = len(encoded.raw)
    if variance <= 0.0 or not count or not len(base):
        return None
    quality = base.header.quality
    in_sample = finite(quality.get("relative_mse_raw")) or base.header.relative_error
    held_out = finite(quality.get("held_out_items")) or 0
    # Where nothing was held out, the error in sample says little: few items may be known by heart.
    expected = max(in_sample, finite(quality.get("relative_mse_held_out")) or 0.0)
    slack = 1 + FEW / math.sqrt(count) + (1 / math.sqrt(held_out) if held_out > 0 else 2.0)
    error = encoded.squared_raw / variance
    known = _energy(base) + base.header.relative_error * variance
    length = math.sqrt(encoded.energy / known) if known > 0 else 1.0
    room = 1 + 1 / math.sqrt(count)
    far = error > max(FAR * slack * expected, expected + ROOM) or not 1 / LONG / room < length < LONG * room
    foreign = (
        error > max(FOREIGN * slack * expected, expected + WAY * (1 - expected))
        or (far and error > USELESS)
        or length >= ENDLESS * room
        or (length <= 1 / ENDLESS / room and count >= SHORT_ITEMS)
    )
    return Novelty(error, expected, length, "foreign" if foreign else "far" if far else "near")


def _energy(base: SemanticIdTable) -> float:
    """Return the mean square of what a table's codes stand for; residuals, being orthogonal, are added to it."""
    step = -(-len(base) // SAMPLE_ITEMS)
    decoded = base.quantizer.decode(base.codes_array[::step])
    return float((decoded.astype("float64") ** 2).sum(1).mean())


def check(base: SemanticIdTable, encoded: Encoded, *, force: bool) -> Novelty | None:
    """
    Say where new items lie far from those of a table, and refuse them where they lie farther.

    Args:
        force: say it, and refuse nothing.

    Returns:
        As `judge`.

    Raises:
        ForeignVectorsError: the vectors are of another encoder, or not normalized as those at the fit were.
    """
    found = judge(base, encoded)
    if found is None or found.verdict == "near":
        return found
    if found.verdict == "foreign" and not force:
        raise ForeignVectorsError(
            f"The vectors of {len(encoded.raw):,} new items are not such as {base.path or 'the table'} was made for: "
            f"{found}. They come from another encoder, or are not normalized as those were. Nothing was written, and "
            "known items keep their IDs. Give the vectors of the encoder that the known items have; train anew for "
            "another one (--retrain, retrain=True); or let them in all the same (--force, force=True)."
        )
    tell(
        "far",
        new=len(encoded.raw),
        error=found.error,
        expected=found.expected,
        length=found.length,
    )
    return found
