"""
Turn vectors into codes and back: `ResidualQuantizer`.

A vector x is normalized, (x − mean) / scale, carried through an encoder z = v + MLP(v) where there
is one, and written as a sum of one codeword a level. The codes are found by beam search. Decoding
adds the codewords up and goes the same way back.

An item's codes depend on its vector and the quantizer alone: neither on the items encoded with it, nor on the batch,
the threads, the processor, its BLAS or the device. Latents come from arithmetic that is the same everywhere
(`_exact`), and so does every decision of the search that rounding could turn (`_search`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semid_dataset._messages import tell
from semid_dataset.codec import kinds
from semid_dataset.codec._estimator import Estimator
from semid_dataset.codec._exact import bits_for, parts, product, sums_of_squares
from semid_dataset.codec._networks import FrozenMLP, ResidualMLP
from semid_dataset.codec._search import BLOCK_CPU, BLOCK_GPU, BeamSearch, ExactSearch, half_norms, pad
from semid_dataset.codec._threads import OutOfMemory, in_blocks, isolated, sent, times
from semid_dataset.codec.kinds import QUANTIZER_FILE
from semid_dataset.errors import EmbeddingError, TableError
from semid_dataset.objects import as_matrix
from semid_dataset.protocols import Quantizer, Trainer

if TYPE_CHECKING:
    from semid_dataset.codec.fusion import Fusion
    from semid_dataset.codec.online import OnlineEncoder
    from semid_dataset.features import FeatureMatrix

__all__ = ["QUANTIZER_FILE", "ResidualQuantizer"]

T = TypeVar("T")

JUDGED, JUDGED_FLOATS = 8, 1 << 21  # blocks of a search that are judged together, and numbers in them, at most
LARGEST = np.finfo(np.float32).max
FLOATS = (np.float16, np.float32, np.float64)


class ResidualQuantizer(Estimator):
    """
    Codebooks with what surrounds them, frozen: given, or what `fit` makes of vectors in scikit-learn's manner.

    Args:
        codebooks: one (codes, dim) float32 tensor a level, in the latent space; None where `fit` shall make them.
        algorithm: what `fit` trains by: a name, or a trainer with its settings.
        levels, codes: how many codebooks it makes, and of how many codes: one number or one per level.
        device, seed: of its training, see `SemanticIdConfig`.
        beam: width of the search.
        prefix_weight: how much the error of the first code alone counts in it, see `BeamSearch`.
        mean: (dim,) float32, subtracted from vectors.
        scale: divides them afterwards.
        encoder: from normalized vectors to latents; None is the identity.
        decoder: from sums of codewords to normalized vectors; None is the identity.
        fusion: what made one vector of several features; None where there was one.

    An item's codes depend on its vector and these arguments alone, whatever the machine; of equally good sums the one
    with the lowest codes is taken. Where a GPU's memory does not suffice the CPU does the work; a line says so.
    """

    kind: ClassVar[str] = "residual"  # stands in files and names who reads them

    @isolated()
    def __init__(
        self,
        codebooks: Sequence[Tensor] | None = None,
        *,
        algorithm: "str | Trainer" = "rqvae",
        levels: int = 4,
        codes: int | tuple[int, ...] = 256,
        device: str = "auto",
        seed: int = 0,
        beam: int = 1,
        prefix_weight: float = 0.0,
        mean: Tensor | None = None,
        scale: float = 1.0,
        encoder: ResidualMLP | None = None,
        decoder: ResidualMLP | None = None,
        fusion: "Fusion | None" = None,
    ) -> None:
        if codebooks is not None:
            levels, codes = len(codebooks), tuple(len(book) for book in codebooks)
        self._settings = {"algorithm": algorithm, "levels": levels, "codes": codes, "device": device, "seed": seed}
        if codebooks is None:
            return
        self.codebooks: list[Tensor] = [book.detach().float().contiguous() for book in codebooks]
        self.dim: int = self.codebooks[0].shape[1]
        self.codebook_sizes: tuple[int, ...] = tuple(len(book) for book in self.codebooks)
        self.beam = beam
        self.prefix_weight = prefix_weight
        self.device: torch.device = self.codebooks[0].device
        self.mean: Tensor = (
            self.codebooks[0].new_zeros(self.dim) if mean is None else mean.detach().float().to(self.device)
        )
        self.scale: float = float(scale)
        self.encoder = encoder
        self.decoder = decoder
        self.fusion = fusion
        self.search: BeamSearch = BeamSearch(self.codebooks, beam, prefix_weight)

    @overload
    def encode(self, vectors: Tensor) -> Tensor: ...
    @overload
    def encode(self, vectors: Any) -> NDArray[Any]: ...
    @isolated()
    def encode(self, vectors: Any) -> Any:
        """
        Return the codes of vectors, without offsets.

        Args:
            vectors: (n, dim), float16, float32 or float64, numpy or torch, or anything that `objects.as_matrix` takes.

        Returns:
            (n, levels): uint8 if every codebook has at most 256 codes, else uint16; int64 for torch input.

        Raises:
            EmbeddingError: another shape, or a row with NaN or inf; the message names the first.

        Memory: bounded, whatever n is, apart from the codes.
        """
        vectors = _numbers_of(vectors)
        codes = self.candidates(vectors, 1)
        if isinstance(vectors, Tensor):
            return codes[:, 0].to(vectors.device)
        return codes[:, 0].cpu().numpy().astype(self.code_dtype)

    @isolated()
    def candidates(self, vectors: NDArray[Any] | Tensor, keep: int) -> Tensor:
        """Return the codes of the `keep` <= beam best sums of each vector, (n, kept, levels) int64."""
        self._check(vectors)
        return self._where_room_is(lambda quantizer: quantizer._candidates(vectors, keep))

    def _candidates(self, vectors: NDArray[Any] | Tensor, keep: int) -> Tensor:
        # One tensor from the beginning, as in `BeamSearch.blocks`: holes in the heap took 400 MB for 500,000 items.
        width = min(keep, math.prod(self.codebook_sizes))
        codes = torch.empty(len(vectors), width, len(self.codebooks), dtype=torch.int64, device=self.device)
        doubt = torch.ones(len(vectors), dtype=torch.bool, device=self.device)
        rows = self.search.rows
        if self.device.type == "cpu":
            rows *= min(max(JUDGED_FLOATS // (self.dim * rows), 1), JUDGED)

        def one(begin: int) -> None:
            block = slice(begin, begin + rows)
            latents = sent(torch.from_numpy(self._latents(_float32(vectors, block))), self.device)
            codes[block], doubt[block] = self.search.judged(latents, keep)

        if self.search.rounds_finely():
            in_blocks(one, range(0, len(vectors), rows), self.device)
        left = doubt.nonzero()[:, 0].cpu().numpy()
        fewer = self._exact_search.rows

        def again(begin: int) -> None:
            some = left[begin : begin + fewer]
            found = self._exact_search(self._latents(_float32(vectors, some)), keep)
            codes[torch.from_numpy(some).to(codes.device)] = torch.from_numpy(found).to(codes.device)

        in_blocks(again, range(0, len(left), fewer), torch.device("cpu"))
        return codes

    @cached_property
    def _exact_search(self) -> ExactSearch:
        return ExactSearch(self.search)

    @isolated()
    def codes_of(self, normalized: Tensor) -> Tensor:
        """
        Return the codes, (n, levels) int64, of vectors already normalized and checked, on this device.

        For training: as far as float32 can tell.
        """
        rows = self.search.rows
        codes = torch.empty(len(normalized), len(self.codebooks), dtype=torch.int64, device=normalized.device)

        def one(begin: int) -> None:
            block = normalized[begin : begin + rows]
            padded = pad(block, rows)
            latents = padded if self.encoder is None else self.encoder(padded)
            codes[begin : begin + rows] = self.search(latents)[: len(block), 0]

        in_blocks(one, range(0, len(normalized), rows), normalized.device)
        return codes

    @overload
    def decode(self, codes: Tensor) -> Tensor: ...
    @overload
    def decode(self, codes: Any) -> NDArray[Any]: ...
    @isolated()
    def decode(self, codes: Any) -> Any:
        """
        Return the vectors that codes stand for, (n, dim) float32, in the space vectors were given in.

        Args:
            codes: (n, levels), or (n, m) of the first m levels alone.

        Raises:
            EmbeddingError: codes of no level or of more than there are, or one beyond its codebook.
        """
        if isinstance(codes, Tensor):
            _check_numbers(codes, "The codes")
        elif type(codes) is not np.ndarray or codes.dtype.kind not in "fiu":
            codes = as_matrix(codes, "the codes")
        if codes.ndim != 2 or not 1 <= codes.shape[1] <= len(self.codebooks):
            raise EmbeddingError(
                f"Codes of shape {tuple(codes.shape)} do not fit a quantizer of {len(self.codebooks)} levels."
            )
        if codes.dtype.is_floating_point if isinstance(codes, Tensor) else codes.dtype.kind == "f":
            raise EmbeddingError(f"Codes are whole numbers; these are {codes.dtype}.")
        vectors = self._where_room_is(lambda quantizer: quantizer._decode(codes))
        return vectors if isinstance(codes, Tensor) else vectors.numpy()

    def _decode(self, codes: NDArray[Any] | Tensor) -> Tensor:
        """Return the vectors where the codes are: a GPU holds those of one block only."""
        there = codes.device if isinstance(codes, Tensor) else torch.device("cpu")
        sizes = torch.tensor(self.codebook_sizes[: codes.shape[1]], device=there)
        vectors = torch.empty(len(codes), self.dim, dtype=torch.float32, device=there)
        rows = BLOCK_CPU if self.device.type == "cpu" else max(BLOCK_GPU // self.dim, 1)
        for begin in range(0, len(codes), rows):
            part = codes[begin : begin + rows]
            block = torch.as_tensor(part.astype(np.int64) if isinstance(part, np.ndarray) else part).long()
            if not bool(((block >= 0) & (block < sizes)).all()):
                raise EmbeddingError(f"A code lies outside its codebook; the sizes are {self.codebook_sizes}.")
            vectors[begin : begin + rows] = self._vectors(self.search.sums(sent(block, self.device)))
        return vectors

    def encode_features(self, features: "Sequence[FeatureMatrix]", items: int) -> NDArray[Any]:
        """Return the codes, (items, levels), of items with any of the features this quantizer knows."""
        return self.encode(self.vectors_of(features, items))

    def vectors_of(self, features: "Sequence[FeatureMatrix]", items: int) -> NDArray[np.float32]:
        """Return the one vector of every item, (items, dim) float32, see `kinds.vectors_of`."""
        return kinds.vectors_of(self, features, items)

    @isolated()
    def distances(self, vectors: NDArray[Any], prefix_codes: NDArray[Any]) -> NDArray[np.float64]:
        """
        Return how far latents are from every sum that begins with given codes, the same on every machine.

        Args:
            vectors: (n, dim).
            prefix_codes: (n, m), the codes of the first m levels of each, 0 <= m < levels.

        Returns:
            (n, codes of level m) squared distances.
        """
        rest = self.left_over(self.prepared(vectors), prefix_codes)
        found = self.nearness(rest, prefix_codes.shape[1])
        found *= 2
        found += sums_of_squares(rest)[:, None]
        return found

    def prepared(self, vectors: NDArray[Any]) -> NDArray[np.float64]:
        """Return the latents of vectors, (n, dim): they are asked for once, and their distances several times."""
        latents: NDArray[np.float64] = self.latents(vectors).cpu().numpy().astype(np.float64)
        return latents

    def left_over(self, latents: NDArray[np.float64], prefix_codes: NDArray[Any]) -> NDArray[np.float64]:
        """Return what the codewords of a prefix (n, m) leave of latents."""
        rest: NDArray[np.float64] = np.array(latents)
        for level in range(prefix_codes.shape[1]):
            rest -= self._words[level][prefix_codes[:, level]]
        return rest

    @isolated()
    def nearness(self, rest: NDArray[np.float64], level: int) -> NDArray[np.float64]:
        """Return half of the distances (n, codes) to a level's codewords, less what all of a row have in common."""
        products = product(rest, self._grids[level], times)
        return np.subtract(self._half_norms[level], products, out=products)

    @isolated()
    def squared_errors(self, vectors: NDArray[Any], codes: NDArray[Any]) -> NDArray[np.float32]:
        """Return the squared distance of every latent, (n,), to its sum of codewords; the same on every machine."""
        return sums_of_squares(self.left_over(self.prepared(vectors), codes)).astype(np.float32)

    @cached_property
    def _words(self) -> list[NDArray[np.float64]]:
        return [book.cpu().numpy().astype(np.float64) for book in self.codebooks]

    @cached_property
    def _grids(self) -> list[list[NDArray[np.float64]]]:
        return [parts(book.T, bits_for(self.dim), axis=0) for book in self._words]

    @cached_property
    def _half_norms(self) -> list[NDArray[np.float64]]:
        return [half_norms(book) for book in self._words]

    def token_vectors(self) -> list[NDArray[np.float32]]:
        """
        Return what every code adds to a vector, (codes, dim) a level, in the space vectors were given in.

        To start a language model's embeddings of ID tokens from what their codes mean: project them to its width.
        With networks around the codebooks it is what the code adds before the decoder, which starts as the identity.
        """
        return [(book * self.scale).cpu().numpy() for book in self.codebooks]

    def module(self, features: Sequence[str] | None = None) -> "OnlineEncoder":
        """
        Return a plain `nn.Module`, (n, dim) float -> (n, levels) int64, that gives the very codes of `encode`.

        For `torch.export`, ONNX, `torch.jit.script` and `torch.compile`; see docs/online.md. Batches of any size.

        Args:
            features: of items that have these and no others; their vectors stand side by side in this order. None: all.

        Raises:
            ConfigError: a feature that this quantizer does not know, or one twice.
        """
        from semid_dataset.codec.online import OnlineEncoder

        return OnlineEncoder(self, features)

    @property
    def code_dtype(self) -> type[np.uint8] | type[np.uint16]:
        """The smallest type that holds every code."""
        return kinds.code_dtype(self.codebook_sizes)

    def to_arrays(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return all weights by name, and a description of JSON types; `from_arrays` takes both."""
        return kinds.state_of(self)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], description: Mapping[str, Any]) -> "ResidualQuantizer":
        """
        Return the quantizer that `to_arrays` described, on the CPU.

        Raises:
            TableError: it is of another kind, or something is missing or does not fit together.
        """
        return _residual(kinds.read_quantizer(arrays, description))

    @isolated()
    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return weights by name and settings of JSON types, all but the fusion."""
        arrays: dict[str, NDArray[Any]] = {
            "codebooks": torch.cat(self.codebooks).cpu().numpy(),
            "mean": self.mean.cpu().numpy(),
        }
        for name, module in (("encoder", self.encoder), ("decoder", self.decoder)):
            if module is not None:
                arrays |= {f"{name}.{key}": value.detach().cpu().numpy() for key, value in module.weights.items()}
        return arrays, {
            "dim": self.dim,
            "codebook_sizes": list(self.codebook_sizes),
            "beam": self.beam,
            "prefix_weight": self.prefix_weight,
            "scale": self.scale,
        }

    @classmethod
    @isolated()
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], config: Mapping[str, Any]) -> "ResidualQuantizer":
        """
        Return the quantizer that `to_state` took apart.

        Raises:
            KeyError, ValueError, TypeError: something is missing or does not fit together.
        """
        words = torch.from_numpy(np.array(arrays["codebooks"], dtype=np.float32))
        sizes = [int(size) for size in config["codebook_sizes"]]
        dim, beam = int(config["dim"]), int(config["beam"])
        prefix_weight = float(config.get("prefix_weight", 0.0))  # unknown to the first tables
        if words.shape != (sum(sizes), dim) or min(sizes) < 1 or beam < 1 or not prefix_weight >= 0:
            raise ValueError(f"codebooks of shape {tuple(words.shape)} for sizes {sizes} of {dim} dims")
        return cls(
            torch.split(words, sizes),
            beam=beam,
            prefix_weight=prefix_weight,
            mean=torch.from_numpy(np.array(arrays["mean"], dtype=np.float32).reshape(dim)),
            scale=float(config["scale"]),
            encoder=_module(arrays, "encoder", dim),
            decoder=_module(arrays, "decoder", dim),
        )

    def save_pretrained(self, folder: str | Path) -> Path:
        """
        Write the bare quantizer, without any item's ID: `quantizer.safetensors`, and `config.json` for other tools.

        For a recommender, save the whole table instead (`SemanticIdTable.save`): known items then keep their IDs.

        Returns:
            The folder, made if need be.

        Raises:
            OSError: it could not be written.
        """
        return kinds.save_quantizer(self, folder)

    @classmethod
    def from_pretrained(cls, path: str | Path, *, revision: str | None = None) -> "ResidualQuantizer":
        """
        Read what `save_pretrained` wrote, or the quantizer of a table.

        Args:
            path: the folder, its `quantizer.safetensors`, a table's file or folder, or a repository of a hub.
            revision: of the repository.

        Raises:
            TableError: there is no quantizer in it, or it is damaged.
            FileNotFoundError, OSError: it cannot be opened.
        """
        return _residual(kinds.open_quantizer(path, revision))

    @isolated()
    def latents(self, vectors: Any) -> Tensor:
        """Return the latents of vectors, (n, dim) float32 on the quantizer's device; as in `encode`."""
        vectors = _numbers_of(vectors)
        self._check(vectors)
        return self._where_room_is(lambda quantizer: quantizer._all_latents(vectors))

    def _all_latents(self, vectors: NDArray[Any] | Tensor) -> Tensor:
        latents = torch.empty(len(vectors), self.dim, dtype=torch.float32, device=self.device)
        rows = self.search.rows

        def one(begin: int) -> None:
            block = slice(begin, begin + rows)
            latents[block] = sent(torch.from_numpy(self._latents(_float32(vectors, block))), self.device)

        in_blocks(one, range(0, len(vectors), rows), self.device)
        return latents

    def _check(self, vectors: NDArray[Any] | Tensor) -> None:
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise EmbeddingError(f"Vectors of shape {tuple(vectors.shape)} do not fit a quantizer of {self.dim} dims.")

    def _where_room_is(self, work: "Callable[[ResidualQuantizer], T]") -> T:
        """Have work done on this device, or on the CPU where its memory does not suffice."""
        try:
            return work(self)
        except OutOfMemory:
            if self.device.type == "cpu":
                raise
        # Outside of the handler: the error's traceback holds the tensors of the failed attempt.
        tell("out_of_memory", device=self.device, how="on cpu")
        return work(self._on_cpu)

    @cached_property
    def _on_cpu(self) -> "ResidualQuantizer":
        networks = [module if module is None else module.on("cpu") for module in (self.encoder, self.decoder)]
        return ResidualQuantizer(
            [book.cpu() for book in self.codebooks],
            beam=self.beam,
            prefix_weight=self.prefix_weight,
            mean=self.mean.cpu(),
            scale=self.scale,
            encoder=networks[0],
            decoder=networks[1],
        )

    def _latents(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the latents of some vectors, the same on every machine: always by the CPU."""
        with np.errstate(over="ignore"):
            normalized = np.divide(np.subtract(block, self._mean), np.float32(self.scale))
        np.clip(normalized, -LARGEST, LARGEST, out=normalized)  # what left the range of float32 ends at its end
        return normalized if self._encoder is None else self._encoder(normalized)

    @cached_property
    def _mean(self) -> NDArray[np.float32]:
        return self.mean.cpu().numpy()

    @cached_property
    def _encoder(self) -> FrozenMLP | None:
        return None if self.encoder is None else FrozenMLP(self.encoder)

    def _vectors(self, sums: Tensor) -> Tensor:
        if self.decoder is not None:
            sums = self.decoder(sums)
        return sums * self.scale + self.mean


def _residual(quantizer: Quantizer) -> ResidualQuantizer:
    """Return a quantizer that is of this family; raises TableError where it is not."""
    if not isinstance(quantizer, ResidualQuantizer):
        raise TableError(
            f"The quantizer is of the kind {quantizer.kind!r}, no ResidualQuantizer: read the table with "
            "SemanticIdTable.open(path) and take its .quantizer."
        )
    return quantizer


def _numbers_of(vectors: Any) -> NDArray[Any] | Tensor:
    """Return vectors as a tensor or an array of real numbers that torch knows."""
    if isinstance(vectors, Tensor):
        _check_numbers(vectors, "The vectors")
        return vectors
    if type(vectors) is not np.ndarray or vectors.dtype.kind not in "fiu":
        vectors = as_matrix(vectors, "the vectors")
    found: NDArray[Any] = vectors
    if found.dtype in FLOATS:
        return found
    with np.errstate(over="ignore"):  # integers, the other byte order; what float32 cannot hold becomes inf
        return found.astype(np.float32)


def _check_numbers(tensor: Tensor, what: str) -> None:
    """Refuse a tensor that has a shape and no real numbers."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise EmbeddingError(f"{what} are a sparse, quantized or complex tensor. Give a dense one of real numbers.")
    if tensor.device.type == "meta" or hasattr(tensor, "fake_mode"):
        raise EmbeddingError(
            f"{what} are a {type(tensor).__name__} without numbers (fake, or on 'meta'). Give real ones."
        )


def _float32(vectors: NDArray[Any] | Tensor, rows: "slice | NDArray[np.int64]") -> NDArray[np.float32]:
    """
    Return some rows as float32, on the CPU.

    Raises:
        EmbeddingError: one is not finite; the message names the first.
    """
    if isinstance(vectors, Tensor):
        at = rows if isinstance(rows, slice) else torch.from_numpy(rows).to(vectors.device)
        block = vectors.detach()[at].to("cpu", torch.float32).numpy()
    else:
        with np.errstate(over="ignore"):  # becomes inf, which is an error of its own
            block = np.asarray(vectors[rows], np.float32)
    finite = np.isfinite(block).all(1)
    if not finite.all():
        bad = int(finite.argmin())
        row = (rows.start or 0) + bad if isinstance(rows, slice) else int(rows[bad])
        raise EmbeddingError(f"Row {row} of the vectors is not finite (NaN, inf, or beyond float32).")
    return block


def _module(arrays: Mapping[str, NDArray[Any]], name: str, dim: int) -> ResidualMLP | None:
    """Return the MLP stored under a name, or None if there is none."""
    state = {
        key.removeprefix(f"{name}."): torch.from_numpy(np.array(arrays[key], dtype=np.float32))
        for key in arrays
        if key.startswith(f"{name}.")
    }
    if not state:
        return None
    module = ResidualMLP.of(state)
    if module.first.shape[1] != dim:
        raise ValueError(f"{name} for {module.first.shape[1]} dims beside codebooks of {dim}")
    return module
