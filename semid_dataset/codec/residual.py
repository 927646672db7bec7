"""
Turn vectors into codes and back: `ResidualQuantizer`.

A vector x is normalized, (x − mean) / scale, carried through an encoder z = v + MLP(v) where there
is one, and written as a sum of one codeword a level. The codes are found by beam search. Decoding
adds the codewords up and goes the same way back.

There is one search in this package, here. Training, extending a table and streaming millions of
items all use it, because two searches would give one item two IDs.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag, gelu, linear

from semid_dataset import _files as files
from semid_dataset._messages import tell
from semid_dataset.codec._kmeans import nearest
from semid_dataset.codec._threads import OutOfMemory, in_blocks, isolated, sent
from semid_dataset.errors import EmbeddingError, TableError
from semid_dataset.format import tensors as container
from semid_dataset.objects import as_matrix

if TYPE_CHECKING:
    from semid_dataset.codec.fusion import Fusion
    from semid_dataset.features import FeatureMatrix

__all__ = ["QUANTIZER_FILE", "BeamSearch", "ResidualMLP", "ResidualQuantizer"]

QUANTIZER_FILE = "quantizer.safetensors"  # a bare quantizer's name in its folder
PREFIX = "quantizer."  # of its arrays' names, there and in a table

T = TypeVar("T")

FLOATS = (np.float16, np.float32, np.float64)

TABLE_FLOATS = 1 << 25  # 128 MB: most that tables of codeword products may take; else products are computed as needed
BLOCK_CPU = 1 << 20  # scores held at once: 4 MB stay in the cache of a core
BLOCK_GPU = 1 << 26
SORTED_BY_HEAP = (
    128  # torch's topk keeps a heap, which is fast, for so small a share of a row; else it partitions pairs
)
NARROWEST = 4  # partial sums that the first levels keep at least
PREFIX_DECAY = 1 / 3  # the error of every further level counts a third of the one before


class ResidualMLP:
    """
    v + W₂ gelu(W₁ v + b₁) + b₂, which starts as the identity: W₂ and b₂ are zero at first.

    Tensors and no `nn.Module`: a program may have hooks on all modules, or all modules made without weights.

    Args:
        dim: of input and output.
        width: of the hidden layer.
        generator: of W₁; None leaves the process's random numbers alone and draws as the seed 0 does.
    """

    def __init__(self, dim: int, width: int, generator: torch.Generator | None = None) -> None:
        generator = generator or torch.Generator("cpu").manual_seed(0)
        bound = dim**-0.5
        first = (torch.rand(width, dim, generator=generator, dtype=torch.float32, device="cpu") * 2 - 1) * bound
        self._set(first, first.new_zeros(width), first.new_zeros(dim, width), first.new_zeros(dim))

    def _set(self, first: Tensor, first_bias: Tensor, last: Tensor, last_bias: Tensor) -> None:
        self.first, self.first_bias, self.last, self.last_bias = first, first_bias, last, last_bias

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> "ResidualMLP":
        """
        Return the one with these weights, by name.

        Raises:
            KeyError, ValueError: one is missing, or they do not fit together.
        """
        module = cls.__new__(cls)
        module._set(weights["first"], weights["first_bias"], weights["last"], weights["last_bias"])
        width, dim = module.first.shape
        if (module.first_bias.shape, module.last.shape, module.last_bias.shape) != ((width,), (dim, width), (dim,)):
            raise ValueError(f"a network of weights {[tuple(weight.shape) for weight in weights.values()]}")
        return module

    @property
    def weights(self) -> dict[str, Tensor]:
        """All weights by name."""
        return {name: getattr(self, name) for name in ("first", "first_bias", "last", "last_bias")}

    def on(self, device: torch.device | str) -> "ResidualMLP":
        """Return a copy on a device, whose weights take no gradients."""
        return ResidualMLP.of({name: weight.detach().clone().to(device) for name, weight in self.weights.items()})

    def __call__(self, vectors: Tensor, frozen: bool = False) -> Tensor:
        """Return (n, dim) for (n, dim); `frozen` lets gradients through to the vectors, but not to the weights."""
        first, first_bias, last, last_bias = (weight.detach() if frozen else weight for weight in self.weights.values())
        hidden = gelu(linear(vectors, first, first_bias))
        return vectors + linear(hidden, last, last_bias)


class BeamSearch:
    """
    Write vectors as sums of codewords, keeping the `beam` best partial sums at every level.

    ½‖z − Σ c‖² = ½‖z‖² + Σ_l (½‖c_l‖² − z·c_l) + Σ_{m<l} c_m·c_l. The products c_m·c_l do not depend
    on z and are looked up, so that a level costs one product z·c for all partial sums together, however wide the beam.
    Width 1 is the greedy search; of equal distances it takes the lowest code.

    A wide beam alone buys a lower error with leading codes that are not the nearest: neighbours then part early. So the
    errors of the leading codes may count too. Kept are the sums with the least
    ‖z − Σ_{m≤l} c_m‖² + Σ_{m<l} w_m ‖z − Σ_{k≤m} c_k‖², w_m = prefix_weight · 3^−m with m from 0.

    The beam widens: every level keeps half as many sums as the next one, but four at least. With 4, 8 and 16 sums
    instead of 16 throughout, the error grows by a thousandth, and the time falls by a third.

    Args:
        codebooks: one (codes, dim) float32 tensor a level.
        beam: partial sums kept at the last level but one, at least 1.
        prefix_weight: w_0; 0 looks at the whole sum alone.

    Memory: the tables, at most 128 MB; 4 · rows · beam · codes bytes of scores, some 4 MB a thread on the CPU.
    Source: faiss, ResidualQuantizer with use_beam_LUT.
    """

    def __init__(self, codebooks: Sequence[Tensor], beam: int, prefix_weight: float = 0.0) -> None:
        self.codebooks = [book.detach() for book in codebooks]
        self.beam = beam
        self.prefix_weight = prefix_weight
        sizes = [len(book) for book in self.codebooks]
        self.widths = [max(beam >> (len(sizes) - 2 - level), min(beam, NARROWEST)) for level in range(len(sizes) - 1)]
        self.offsets = torch.tensor([0, *sizes[:-1]], device=self.codebooks[0].device).cumsum(0)
        self.words = torch.cat(self.codebooks)
        self.half_norms = [book.square().sum(1) / 2 for book in self.codebooks]
        floats = sum(size * sum(sizes[:level]) for level, size in enumerate(sizes))
        self.tables: list[Tensor] | None = None
        if floats <= TABLE_FLOATS:
            before = [sum(sizes[:level]) for level in range(len(sizes))]
            # A last row of ones: times a sum's score it adds that in the same pass.
            self.tables = [
                torch.cat([self.words[: before[level]] @ book.T, book.new_ones(1, len(book))])
                for level, book in enumerate(self.codebooks)
            ]
        block, most = (BLOCK_CPU, 1024) if self.words.device.type == "cpu" else (BLOCK_GPU, 65_536)
        # A multiple of 16, so that no row meets the ragged edge of a matrix product. Single items are padded to as
        # many rows, so there are not too many.
        self.rows = min(max(block // (beam * max(sizes)) // 16 * 16, 16), most)

    def __call__(self, latents: Tensor, keep: int = 1) -> Tensor:
        """
        Return the codes of the `keep` <= beam best sums of every latent, best first.

        Args:
            latents: (n, dim) float32, n <= `rows`.

        Returns:
            (n, kept, levels) int64; kept is less than `keep` only where there are fewer sums.
        """
        codes = torch.empty(len(latents), 1, 0, dtype=torch.int64, device=latents.device)
        scores = latents.new_zeros(
            len(latents), 1
        )  # what partial sums are ranked by, half of it, less what z adds to all
        surcharge = scores  # the part of it that leading codes add
        last = len(self.codebooks) - 1
        for level, book in enumerate(self.codebooks):
            width = self.widths[level] if level < last else keep
            linear = torch.addmm(self.half_norms[level], latents, book.T, alpha=-1)
            total = linear[:, None, :]
            if level > 0:
                total = self._extended(codes, scores, level).add_(total)  # (n, width before, codes)
            scores, parent, code = _smallest(total, width, ordered=level == last)
            if self.prefix_weight and self.beam > 1 and level < last:
                before = surcharge.gather(1, parent)
                surcharge = before + self.prefix_weight * PREFIX_DECAY**level * (scores - before)
                scores = scores + (surcharge - before)
            codes = torch.cat([codes.gather(1, parent[:, :, None].expand(-1, -1, level)), code[:, :, None]], 2)
        return codes

    def _extended(self, codes: Tensor, scores: Tensor, level: int) -> Tensor:
        """Return the scores of partial sums plus their products with a level's codewords, (n, width, codes)."""
        n, width = scores.shape
        chosen = (codes + self.offsets[:level]).flatten(0, 1)
        if self.tables is None:
            products = embedding_bag(chosen, self.words, mode="sum") @ self.codebooks[level].T
            return products.view(n, width, -1).add_(scores[:, :, None])
        table = self.tables[level]
        weights = scores.new_ones(n * width, level + 1)
        weights[:, level] = scores.flatten()
        chosen = torch.cat([chosen, chosen.new_full((n * width, 1), len(table) - 1)], 1)
        return embedding_bag(chosen, table, mode="sum", per_sample_weights=weights).view(n, width, -1)

    def blocks(self, latents: Tensor, keep: int = 1) -> Tensor:
        """Return what a call does for any number of latents, in blocks of one fixed shape."""
        # One tensor from the beginning: small results kept between large passing ones would hole the heap.
        width = min(keep, math.prod(map(len, self.codebooks)))
        codes = torch.empty(len(latents), width, len(self.codebooks), dtype=torch.int64, device=latents.device)

        def one(begin: int) -> None:
            block = latents[begin : begin + self.rows]
            codes[begin : begin + self.rows] = self(pad(block, self.rows), keep)[: len(block)]

        in_blocks(one, range(0, len(latents), self.rows), latents.device)
        return codes

    def sums(self, codes: Tensor) -> Tensor:
        """Return the sums of codewords, (n, dim), for (n, levels) codes of the first levels."""
        return embedding_bag(codes + self.offsets[: codes.shape[1]], self.words, mode="sum")


def _smallest(total: Tensor, width: int, *, ordered: bool) -> tuple[Tensor, Tensor, Tensor]:
    """
    Find the `width` smallest of every (parents, codes) matrix.

    The smallest `width` lie in the columns whose minimum is among the smallest `width` minima, which
    leaves `width` columns to sort instead of all.

    Returns:
        scores, parents, codes: each (n, width), ascending if `ordered`.
    """
    parents, codes = total.shape[1:]
    if width == 1:
        at = nearest(total.flatten(1))[:, None]  # the first of equals
        return total.flatten(1).gather(1, at), at // codes, at % codes
    scores, columns = _least(total.amin(1), min(width, codes), ordered=ordered)
    if parents == 1:
        return scores, torch.zeros_like(columns), columns
    some = total.gather(2, columns[:, None, :].expand(-1, parents, -1)).flatten(1)
    scores, at = _least(some, min(width, some.shape[1]), ordered=ordered)
    return scores, at // columns.shape[1], columns.gather(1, at % columns.shape[1])


def _least(values: Tensor, width: int, *, ordered: bool) -> tuple[Tensor, Tensor]:
    """Return the `width` least of every row of (n, m) values and where they are, each (n, width); ascending or not."""
    if values.device.type == "cpu" and width * SORTED_BY_HEAP > values.shape[1]:
        # NumPy sorts by vector instructions: a quarter of topk's time for 16 of 256. Ties are left to topk.
        array = values.numpy()
        rows, length = array.shape
        bound = np.sort(array, axis=1)[:, width - 1 : width]  # rows are short: sorting beats partitioning
        found = np.flatnonzero(array <= bound)
        if len(found) == rows * width:
            at = torch.from_numpy(found % length).view(rows, width)
            scores = values.gather(1, at)
            if ordered:
                scores, order = scores.sort(1)
                at = at.gather(1, order)
            return scores, at
    scores, at = values.topk(width, 1, largest=False, sorted=ordered)
    return scores, at


def pad(block: Tensor, rows: int) -> Tensor:
    """Return the block with zero rows added up to `rows`: a product's rounding depends on its shape."""
    if len(block) == rows:
        return block
    return torch.cat([block, block.new_zeros(rows - len(block), block.shape[1])])


class ResidualQuantizer:
    """
    Codebooks with what surrounds them, frozen.

    Args:
        codebooks: one (codes, dim) float32 tensor a level, in the latent space.
        beam: width of the search.
        prefix_weight: how much the error of the first code alone counts in it, see `BeamSearch`.
        mean: (dim,) float32, subtracted from vectors.
        scale: divides them afterwards.
        encoder: from normalized vectors to latents; None is the identity.
        decoder: from sums of codewords to normalized vectors; None is the identity.
        fusion: what made one vector of several features; None where there was one.

    An item's codes depend neither on the items encoded with it nor on how many they are: vectors go
    through in blocks of one shape. So where a GPU's memory does not suffice the CPU does the work, and not a GPU with
    smaller blocks; a line says so.
    """

    kind: ClassVar[str] = "residual"  # stands in files and names who reads them

    @isolated()
    def __init__(
        self,
        codebooks: Sequence[Tensor],
        *,
        beam: int = 1,
        prefix_weight: float = 0.0,
        mean: Tensor | None = None,
        scale: float = 1.0,
        encoder: ResidualMLP | None = None,
        decoder: ResidualMLP | None = None,
        fusion: "Fusion | None" = None,
    ) -> None:
        self.codebooks = [book.detach().float().contiguous() for book in codebooks]
        self.dim = self.codebooks[0].shape[1]
        self.codebook_sizes = tuple(len(book) for book in self.codebooks)
        self.beam = beam
        self.prefix_weight = prefix_weight
        self.device = self.codebooks[0].device
        self.mean = self.codebooks[0].new_zeros(self.dim) if mean is None else mean.detach().float().to(self.device)
        self.scale = float(scale)
        self.encoder = encoder
        self.decoder = decoder
        self.fusion = fusion
        self.search = BeamSearch(self.codebooks, beam, prefix_weight)

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
        if isinstance(vectors, Tensor):
            _check_numbers(vectors, "The vectors")
        else:
            if type(vectors) is not np.ndarray or vectors.dtype.kind not in "fiu":
                vectors = as_matrix(vectors, "the vectors")
            if vectors.dtype not in FLOATS:  # integers, the other byte order: not every torch takes them
                with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, and is then named
                    vectors = vectors.astype(np.float32)
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
        rows = self.search.rows
        begins = range(0, len(vectors), rows)
        finite = torch.ones(len(begins), dtype=torch.bool, device=self.device)  # looked at once, not after every block

        def one(begin: int) -> None:
            block = _tensor(vectors[begin : begin + rows], self.device)
            finite[begin // rows] = torch.isfinite(block).all()
            codes[begin : begin + len(block)] = self.search(pad(self._latents(block), rows), keep)[: len(block)]

        in_blocks(one, begins, self.device)
        _check_finite(vectors, finite, rows)
        return codes

    @isolated()
    def codes_of(self, normalized: Tensor) -> Tensor:
        """Return the codes, (n, levels) int64, of vectors already normalized and checked, on this device."""
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

        Raises:
            EmbeddingError: codes of another number of levels, or one beyond its codebook.
        """
        if isinstance(codes, Tensor):
            _check_numbers(codes, "The codes")
        elif type(codes) is not np.ndarray or codes.dtype.kind not in "fiu":
            codes = as_matrix(codes, "the codes")
        if codes.ndim != 2 or codes.shape[1] != len(self.codebooks):
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
        sizes = torch.tensor(self.codebook_sizes, device=there)
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
        """
        Return the one vector of every item, (items, dim) float32, that its features are fused to.

        Raises:
            EmbeddingError: features that do not fit, see `Fusion.apply`.
        """
        if self.fusion is not None:
            return self.fusion.apply(features, items)
        if len(features) != 1 or len(features[0].rows) != items:
            raise EmbeddingError(
                f"This quantizer knows one feature; got {len(features)} for {items} items. Give it one with all items."
            )
        return features[0].matrix

    @property
    def code_dtype(self) -> type[np.uint8] | type[np.uint16]:
        """The smallest type that holds every code."""
        return np.uint8 if max(self.codebook_sizes) <= 256 else np.uint16

    @isolated()
    def to_arrays(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return all weights by name, and a description of JSON types; `from_arrays` takes both."""
        arrays: dict[str, NDArray[Any]] = {
            "codebooks": torch.cat(self.codebooks).cpu().numpy(),
            "mean": self.mean.cpu().numpy(),
        }
        for name, module in (("encoder", self.encoder), ("decoder", self.decoder)):
            if module is not None:
                arrays |= {f"{name}.{key}": value.detach().cpu().numpy() for key, value in module.weights.items()}
        description: dict[str, Any] = {
            "kind": self.kind,
            "dim": self.dim,
            "codebook_sizes": list(self.codebook_sizes),
            "beam": self.beam,
            "prefix_weight": self.prefix_weight,
            "scale": self.scale,
            "fusion": None,
        }
        if self.fusion is not None:
            fused, description["fusion"] = self.fusion.to_arrays()
            arrays |= {f"fusion.{key}": value for key, value in fused.items()}
        return arrays, description

    @classmethod
    @isolated()
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], description: Mapping[str, Any]) -> "ResidualQuantizer":
        """
        Return the quantizer that `to_arrays` described, on the CPU.

        Raises:
            TableError: something is missing or does not fit together.
        """
        kind = description.get("kind", cls.kind)  # unknown to the first tables
        if kind != cls.kind:
            raise TableError(f"The quantizer in this table is of the kind {kind!r}, which this version cannot read.")
        try:
            words = torch.from_numpy(np.array(arrays["codebooks"], dtype=np.float32))
            sizes = [int(size) for size in description["codebook_sizes"]]
            dim, beam = int(description["dim"]), int(description["beam"])
            prefix_weight = float(description.get("prefix_weight", 0.0))  # unknown to the first tables
            if words.shape != (sum(sizes), dim) or min(sizes) < 1 or beam < 1 or not prefix_weight >= 0:
                raise ValueError(f"codebooks of shape {tuple(words.shape)} for sizes {sizes} of {dim} dims")
            fusion = None
            if description["fusion"] is not None:
                from semid_dataset.codec.fusion import Fusion

                fused = {key.removeprefix("fusion."): arrays[key] for key in arrays if key.startswith("fusion.")}
                fusion = Fusion.from_arrays(fused, description["fusion"])
            return cls(
                torch.split(words, sizes),
                beam=beam,
                prefix_weight=prefix_weight,
                mean=torch.from_numpy(np.array(arrays["mean"], dtype=np.float32).reshape(dim)),
                scale=float(description["scale"]),
                encoder=_module(arrays, "encoder", dim),
                decoder=_module(arrays, "decoder", dim),
                fusion=fusion,
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise TableError(f"The quantizer in this table cannot be read: {error}") from error

    def save_pretrained(self, folder: str | Path) -> Path:
        """
        Write the bare quantizer, without any item's ID: `quantizer.safetensors`, and `config.json` for other tools.

        For a recommender, save the whole table instead (`SemanticIdTable.save`): known items then keep their IDs.

        Returns:
            The folder, made if need be.

        Raises:
            OSError: it could not be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays, description = self.to_arrays()
        named = {f"{PREFIX}{name}": array for name, array in arrays.items()}
        files.replace_file(folder / QUANTIZER_FILE, container.serialize(named, {"quantizer": description}))
        text = json.dumps({"model_type": "semid_residual_quantizer", **description}, indent=2)
        files.replace_file(folder / "config.json", [text.encode()])
        return folder

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "ResidualQuantizer":
        """
        Read what `save_pretrained` wrote, or the quantizer of a table.

        Args:
            path: the folder, its `quantizer.safetensors`, or a table's file.

        Raises:
            TableError: there is no quantizer in it, or it is damaged.
            FileNotFoundError, OSError: it cannot be opened.
        """
        path = Path(path)
        if path.is_dir():
            path = path / QUANTIZER_FILE
        read = container.parse(files.map_file(path, mmap=False, follow=True)[0], str(path))
        description = read.info.get("quantizer")
        if not isinstance(description, dict):
            raise TableError(
                f"'{path}' holds no quantizer. Give the folder of save_pretrained, or a table that has one."
            )
        arrays = {name.removeprefix(PREFIX): array for name, array in read.arrays.items() if name.startswith(PREFIX)}
        return cls.from_arrays(arrays, description)

    @isolated()
    def latents(self, vectors: NDArray[Any] | Tensor) -> Tensor:
        """Return the latents of vectors, (n, dim) float32 on the quantizer's device; as in `encode`."""
        self._check(vectors)
        return self._where_room_is(lambda quantizer: quantizer._all_latents(vectors))

    def _all_latents(self, vectors: NDArray[Any] | Tensor) -> Tensor:
        rows = self.search.rows
        begins = range(0, len(vectors), rows)
        latents = torch.empty(len(vectors), self.dim, dtype=torch.float32, device=self.device)
        finite = torch.ones(len(begins), dtype=torch.bool, device=self.device)
        for number, begin in enumerate(begins):
            block = _tensor(vectors[begin : begin + rows], self.device)
            finite[number] = torch.isfinite(block).all()
            latents[begin : begin + rows] = self._latents(block)
        _check_finite(vectors, finite, rows)
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
        tell("out_of_memory", logging.WARNING, device=self.device, how="on cpu")
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

    def _latents(self, block: Tensor) -> Tensor:
        """Return the latents of a block of at most `search.rows` vectors on this device."""
        normalized = (block - self.mean) / self.scale
        if self.encoder is None:
            return normalized
        return self.encoder(pad(normalized, self.search.rows))[: len(block)]

    def _vectors(self, sums: Tensor) -> Tensor:
        if self.decoder is not None:
            sums = self.decoder(sums)
        return sums * self.scale + self.mean


def _check_numbers(tensor: Tensor, what: str) -> None:
    """Refuse a tensor that has a shape and no numbers."""
    if tensor.device.type == "meta" or hasattr(tensor, "fake_mode"):
        raise EmbeddingError(
            f"{what} are a {type(tensor).__name__} without numbers (fake, or on 'meta'). Give real ones."
        )


def _tensor(vectors: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """Return vectors as float32 on a device."""
    raw = torch.from_numpy(np.ascontiguousarray(vectors)) if isinstance(vectors, np.ndarray) else vectors
    return sent(raw, device).to(torch.float32)


def _check_finite(vectors: NDArray[Any] | Tensor, finite: Tensor, rows: int) -> None:
    """Raise for the first row that is not finite, of blocks of `rows` of which `finite` says whether all of it is."""
    if bool(finite.all()):
        return
    first = int(finite.int().argmin()) * rows
    block = _tensor(vectors[first : first + rows], torch.device("cpu"))
    bad = first + int((~torch.isfinite(block).all(1)).nonzero()[0])
    raise EmbeddingError(f"Row {bad} of the vectors is not finite (NaN, inf, or beyond float32).")


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
