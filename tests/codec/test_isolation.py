"""What a program has set in torch or NumPy changes neither IDs nor what it has set."""

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from world import ITEM0, SMALL, SmallDataset, make_data, vectors_of, write_embeddings

from semid_dataset import SemanticIdTable
from semid_dataset.build.recover import fit_to_ids
from semid_dataset.codec import metrics
from semid_dataset.codec._threads import isolated
from semid_dataset.codec.residual import ResidualQuantizer
from semid_dataset.codec.train import train
from semid_dataset.codec.unique import resolve_collisions
from semid_dataset.errors import EmbeddingError
from semid_dataset.exports import export, read_export

VECTORS = vectors_of(300)


class NoDispatch(TorchDispatchMode):
    """A mode that nothing of ours may reach."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"the caller's mode saw {func}")


class NoFunction(TorchFunctionMode):
    """The same for functions."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"the caller's mode saw {func}")


def harmful(*_: Any) -> Any:
    """A hook that nothing of ours may call."""
    raise AssertionError("the caller's hook was called")


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """As a program that sets it at its beginning."""
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() is dtype
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
        assert torch.empty(1).device.type == device
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    torch.set_float32_matmul_precision(precision)
    try:
        yield
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


@contextlib.contextmanager
def module_hooks() -> Iterator[None]:
    """Profilers hook into all modules there are."""
    hook = torch.nn.modules.module.register_module_forward_hook(harmful)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def modules_without_weights() -> Iterator[None]:
    """As libraries that load large models do it."""
    register = torch.nn.Module.register_parameter

    def on_meta(module: torch.nn.Module, name: str, parameter: Any) -> None:
        register(module, name, None if parameter is None else torch.nn.Parameter(parameter.to("meta")))

    torch.nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


STATES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "nothing": contextlib.nullcontext,
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "set_grad_enabled(False)": lambda: torch.set_grad_enabled(False),
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype float16": lambda: default_dtype(torch.float16),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device meta": lambda: default_device("meta"),
    "default device cpu": lambda: default_device("cpu"),
    "torch.device('meta')": lambda: torch.device("meta"),
    "FakeTensorMode": FakeTensorMode,
    "a dispatch mode": NoDispatch,
    "a function mode": NoFunction,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic algorithms": deterministic,
    "products in bfloat16": lambda: matmul_precision("medium"),
    "detect_anomaly": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "hooks of saved tensors": lambda: torch.autograd.graph.saved_tensors_hooks(harmful, harmful),
    "no hooks of saved tensors": lambda: torch.autograd.graph.disable_saved_tensors_hooks("none here"),
    "hooks of modules": module_hooks,
    "modules without weights": modules_without_weights,
    "NumPy's errors raise": lambda: np.errstate(all="raise"),
}


def everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    """Go through every door once, in a cache of its own, and return what came out."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{name}"))
    data = make_data(tmp_path / name, 300)
    first = SmallDataset(data).semantic_id_dict
    write_embeddings(data, vectors_of(340, seed=0))
    extended = SmallDataset(data).semantic_id_dict
    assert (first.status, extended.status) == ("trained", "extended"), (first.reason, extended.reason)
    quantizer = extended.quantizer
    codes = quantizer.encode(VECTORS)
    decoded = quantizer.decode(codes)
    assert (codes.dtype, decoded.dtype) == (np.uint8, np.float32)
    again = ResidualQuantizer.from_arrays(*quantizer.to_arrays())
    unique = resolve_collisions(quantizer, VECTORS, codes)
    figures = metrics.measure(quantizer, VECTORS, codes, unique)
    fitted = fit_to_ids(VECTORS, codes, quantizer.codebook_sizes)
    return [
        first.digest,
        first[ITEM0],
        extended.digest,
        [dict(step) | {"date": "", "time": 0} for step in extended.quality["extensions"]],
        first.quality,
        codes.tolist(),
        decoded.tolist(),
        again.encode(VECTORS).tolist(),
        unique.codes.tolist(),
        figures,
        fitted.decode(codes).tolist(),
        quantizer.latents(VECTORS),
    ]


def in_numbers(found: list[Any]) -> list[Any]:
    """Turn the tensor among them into numbers; not within a state, which would have its say."""
    return [one.tolist() if isinstance(one, torch.Tensor) else one for one in found]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What comes out where nothing is set."""
    with pytest.MonkeyPatch.context() as patch:
        return in_numbers(everything(tmp_path_factory.mktemp("plain"), patch, "plain"))


@pytest.mark.parametrize("state", STATES)
def test_every_door_gives_the_same_in_every_state(
    state: str, plain: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training, extension, encoding, decoding, uniqueness, measuring: every digit; no random number is used up."""
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    with STATES[state]():
        found = everything(tmp_path, monkeypatch, "data")
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    assert in_numbers(found) == plain
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("transform", ["vmap", "grad", "trace"])
def test_within_a_transform_of_a_function_nothing_is_transformed(
    transform: str, plain: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that asks for IDs when it first needs them may do so inside of torch.func."""
    found: list[Any] = []

    def model(x: torch.Tensor) -> torch.Tensor:
        found.append(everything(tmp_path, monkeypatch, f"data{len(found)}"))
        return x * 2

    if transform == "vmap":
        torch.func.vmap(model)(torch.ones(3))
    elif transform == "grad":
        assert torch.func.grad(model)(torch.tensor(1.0)) == 2
    else:
        torch.jit.trace(model, torch.ones(3), check_trace=False)
    assert [in_numbers(one) for one in found] == [plain]


def test_a_compiled_function_may_read_the_attribute(plain: list[Any], tmp_path: Path) -> None:
    """torch.compile follows calls into all Python code, and broke where it met NumPy's."""
    dataset = SmallDataset(make_data(tmp_path, 300))

    @torch.compile(backend="eager")
    def model(x: torch.Tensor) -> torch.Tensor:
        return x + len(dataset.semantic_id_dict)

    assert model(torch.zeros(2)).tolist() == [300, 300]
    assert (dataset.semantic_id_dict.status, dataset.semantic_id_dict.digest) == ("trained", plain[0])


def test_nothing_of_the_default_dtype_is_ever_made() -> None:
    """Whatever makes a tensor names its dtype: whole numbers that meet a fraction get the default one, too."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for one in result if isinstance(result, tuple | list) else [result]:
                if isinstance(one, torch.Tensor):
                    seen.add(one.dtype)
            return result

    seen: set[torch.dtype] = set()
    with default_dtype(torch.bfloat16), isolated(), Watch():
        trained = train(VECTORS, SMALL)
        codes = trained.quantizer.encode(VECTORS)
        metrics.measure(
            trained.quantizer, VECTORS, codes, resolve_collisions(trained.quantizer, VECTORS, codes), trained
        )
        ResidualQuantizer.from_arrays(*trained.quantizer.to_arrays()).decode(codes)
        fit_to_ids(VECTORS, codes, trained.quantizer.codebook_sizes)
    assert torch.float32 in seen
    assert torch.bfloat16 not in seen


@pytest.mark.parametrize("state", ["inference_mode", "FakeTensorMode", "default device meta"])
def test_tensors_that_are_handed_out_are_ordinary_ones(state: str) -> None:
    """A tensor of inference mode could never take part in a training."""
    quantizer = train(VECTORS, SMALL).quantizer
    given = torch.from_numpy(VECTORS.copy())
    with STATES[state]():
        codes = quantizer.encode(given)
        vectors = quantizer.decode(codes)
        latents = quantizer.latents(VECTORS)
        loaded = ResidualQuantizer.from_arrays(*quantizer.to_arrays())
    for tensor in (codes, vectors, latents, *loaded.codebooks, loaded.mean):
        assert type(tensor) is torch.Tensor
        assert not tensor.is_inference()
        assert tensor.device.type == "cpu"
    weight = torch.ones(1, requires_grad=True)
    (vectors * weight).sum().backward()
    assert weight.grad is not None


def test_vectors_made_in_inference_mode_or_with_gradients_are_taken() -> None:
    """They are numbers like others."""
    quantizer = train(VECTORS, SMALL).quantizer
    wanted = quantizer.encode(VECTORS)
    with torch.inference_mode():
        inferred = torch.from_numpy(VECTORS.copy()) * 1.0
    learned = torch.nn.Parameter(torch.from_numpy(VECTORS.copy()))
    assert np.array_equal(quantizer.encode(inferred).numpy(), wanted)
    assert np.array_equal(quantizer.encode(learned).numpy(), wanted)
    with torch.inference_mode():
        assert np.array_equal(quantizer.encode(inferred).numpy(), wanted)


def test_tensors_without_numbers_are_refused() -> None:
    """A fake tensor has a shape and nothing to encode."""
    quantizer = train(VECTORS, SMALL).quantizer
    with FakeTensorMode():
        fake = torch.empty(5, 8)
    for nothing in (fake, torch.empty(5, 8, device="meta")):
        with pytest.raises(EmbeddingError, match="without numbers"):
            quantizer.encode(nothing)
    with pytest.raises(EmbeddingError, match="without numbers"):
        quantizer.decode(torch.empty(5, 3, dtype=torch.int64, device="meta"))


@pytest.mark.parametrize("state", ["inference_mode", "FakeTensorMode", "default device meta", "torch.device('meta')"])
def test_tensors_in_files_are_real_in_every_state(state: str, tmp_path: Path) -> None:
    """The export that holds a tensor is written and read."""
    table = SemanticIdTable.from_mapping({7: [1, 2, 3], 8: [4, 5, 6]})
    export(table, tmp_path / "plain.pt")
    with STATES[state]():
        export(table, tmp_path / "within.pt")
        assert read_export(tmp_path / "plain.pt").to_dict() == table.to_dict()
    assert read_export(tmp_path / "within.pt").to_dict() == table.to_dict()


def test_what_was_set_is_back_after_an_error() -> None:
    """Also where the work fails."""
    quantizer = train(VECTORS, SMALL).quantizer
    threads = torch.get_num_threads()
    with matmul_precision("medium"), torch.inference_mode(), torch.device("meta"):
        with pytest.raises(EmbeddingError):
            quantizer.encode(np.full((4, 8), np.nan, np.float32))
        assert torch.is_inference_mode_enabled()
        assert torch.empty(1).device.type == "meta"
    assert torch.get_num_threads() == threads
