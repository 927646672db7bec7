"""Embeddings that sequences of their items took part in."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset._messages import degrade, tell
from semid_dataset.build.pipeline import say_beyond
from semid_dataset.codec.bulk import find_bulk

if TYPE_CHECKING:
    from semid_dataset.inputs.read import Embeddings

__all__ = ["with_sequences"]


def with_sequences(
    embeddings: "Embeddings", sequences: Iterable[Sequence[Any] | NDArray[Any]], *, needed: bool = False
) -> "Embeddings":
    """
    Return embeddings with vectors that sequences of their items took part in, see `behaviour.behaviour_aware`.

    They come back as they were, with a warning, where that would find no more of held-out items, or fewer new ones,
    unless it is `needed`: a table was made so.

    Raises:
        NoEmbeddingsError: no two of the items occur near each other.
    """
    from semid_dataset.codec.behaviour import WEIGHT, behaviour_aware, known_sequences

    known = known_sequences(embeddings.items, sequences)
    taken = hashlib.sha256()
    for sequence in known:
        taken.update(np.array([len(sequence), *sequence], np.int64).tobytes())
    (feature,) = embeddings.features
    bulk = find_bulk(feature.matrix)
    if bulk.beyond is not None:
        first = [str(embeddings.items[row]) for row in np.flatnonzero(bulk.beyond)[:3].tolist()]
        say_beyond(int(bulk.beyond.sum()), len(bulk.beyond), first, bulk.times)
    aware = behaviour_aware(feature, known)
    if aware is None and needed:
        aware = behaviour_aware(feature, known, weight=WEIGHT)
    if aware is None:
        degrade("behaviour_left_out")
        return embeddings
    tell("behaviour_taken", weight=aware.weight)
    digest = hashlib.sha256(f"{embeddings.digest}\0sequences\0{taken.hexdigest()}".encode()).hexdigest()
    return replace(embeddings, fused=(aware.alone, aware.vectors), digest=digest, behaviour=taken.hexdigest())
