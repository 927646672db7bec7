"""
Spread blocks of work over threads, each block one thread's.

torch splits every operation among threads that wait for each other. Where other programs compute too, one of them is
always late while the others spin: a training then takes ten times as long. And how a product is split decides how it
is rounded. So the heavy loops of this package hand whole blocks to threads that do not meet, and torch's own threads
rest meanwhile: what comes out does not depend on how many threads there are.

On a GPU blocks queue up instead, and so does what is sent to it.

Nor does it depend on what the caller has set in torch: see `isolated`, which every door of this package enters.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from semid_dataset._process import is_ending, outside_compiler, unforked

__all__ = ["OutOfMemory", "in_blocks", "isolated", "sent", "times"]

AHEAD = 2  # blocks that may wait for a GPU: what was sent for them lies in memory that is not swapped

# torch.OutOfMemoryError came with 2.5; it is the same class where both are.
OutOfMemory: type[Exception] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)


class _Crew:
    """The threads that this process shares out blocks to, for as long as anybody does."""

    def __init__(self) -> None:
        self.forget()

    def forked(self) -> None:
        """Begin anew. A child has none of its parent's threads, and may have got the lock in any state."""
        if self.users:
            self.settings.give_back()
            torch.set_num_threads(self.size)
        self.forget()

    def forget(self) -> None:
        """Have nobody in a context."""
        self.lock = threading.RLock()  # a signal's handler may come here while this thread holds it
        self.here = threading.local()  # .depth: contexts that this thread is in; .works: it is at a block
        self.users = 0  # threads in a context
        self.size = 1  # torch's threads before the first of them entered
        self.pool: ThreadPoolExecutor | None = None

    def enter(self) -> None:
        self.here.depth = getattr(self.here, "depth", 0) + 1
        if self.here.depth > 1:
            return
        with self.lock:
            if self.users == 0:
                self.size = torch.get_num_threads()
                self.settings = _Settings()
                self.pool = ThreadPoolExecutor(
                    self.size, thread_name_prefix="semid_dataset", initializer=torch.set_num_threads, initargs=(1,)
                )
            self.users += 1
            torch.set_num_threads(1)  # of this thread, and what threads of others' making begin with

    def leave(self) -> None:
        if not getattr(self.here, "depth", 0):
            return  # forked within the context: the child has left it
        self.here.depth -= 1
        if self.here.depth > 0:
            return
        with self.lock:
            self.users -= 1
            if self.users == 0 and self.pool is not None:
                self.pool.shutdown(cancel_futures=True)
                self.pool = None
                self.settings.give_back()
            torch.set_num_threads(self.size)


_crew = _Crew()


os.register_at_fork(after_in_child=_crew.forked)


@contextmanager
def isolated() -> Iterator[None]:
    """
    Compute as in a program that has set nothing in torch, whatever this one has; the threads of `in_blocks` stay alive.

    Entered by everything that others call: training, encoding, decoding, uniqueness, measuring. Within it no gradients
    are taken, and none of these is in effect: inference mode, autocast, modes of functions and of dispatch (a default
    device, fake tensors), transforms of torch.func, hooks of saved tensors, tracing, compiling, NumPy's errors that
    raise, products of float32 rounded to bfloat16. What is made is an ordinary tensor. The default dtype is the
    process's, other threads may need it as it is: so whatever makes a tensor here names dtype and device.

    Torch keeps to one thread. So a forked child, which has none of the threads that its parent's OpenMP left in this
    thread's books, does not wait for them for ever: a region of one thread asks nobody.

    May be nested, and entered by several threads at once.
    """
    crew = _crew
    if getattr(crew.here, "depth", 0):
        crew.enter()
        try:
            yield
        finally:
            crew.leave()
        return
    crew.enter()
    try:
        with ExitStack() as stack:
            _leave_modes(stack)
            yield
    finally:
        crew.leave()


def _leave_modes(stack: ExitStack) -> None:
    """Put off, until the stack is closed, what this thread has set in torch and NumPy; see `isolated`."""
    # What torch offers no public name for is touched only where it is in effect: it may go, or be slow to import.
    core: Any = torch._C
    stack.enter_context(core.DisableTorchFunction())
    if core._len_torch_dispatch_stack():
        from torch.utils._python_dispatch import _disable_current_modes

        stack.enter_context(_disable_current_modes())
    if _peek_transform() is not None:
        from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

        stack.enter_context(temporarily_clear_interpreter_stack())
    stack.enter_context(outside_compiler())
    if (tracing := core._get_tracing_state()) is not None:
        core._set_tracing_state(None)
        stack.callback(core._set_tracing_state, tracing)
    stack.enter_context(torch.inference_mode(False))
    if _has_saved_tensors_hooks():
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_same, _same))
    stack.enter_context(torch.no_grad())
    for device in ("cpu", "cuda"):
        if device == "cpu" or torch.cuda.is_available():
            stack.enter_context(torch.autocast(device, enabled=False))
    stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))


def _peek_transform() -> object:
    peek = getattr(torch._C._functorch, "peek_interpreter_stack", None)
    return None if peek is None else peek()


def _has_saved_tensors_hooks() -> bool:
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is not None and top(False) is not None


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


class _Settings:
    """
    What is set for all threads and decides digits: put right while anybody computes here, given back afterwards.

    Products of float32 that may be rounded to bfloat16 or TF32, and, where there is a GPU, the ban on operations
    that torch does not know to be deterministic (it raises for some whose sums are of whole numbers).
    """

    def __init__(self) -> None:
        self.undo: list[Callable[[], object]] = []
        backends: list[Any] = [torch.backends.cuda, torch.backends.mkldnn]
        products: list[Any] = [getattr(backend, "matmul", None) for backend in backends]
        if all(hasattr(product, "fp32_precision") for product in products):  # since 2.9
            for product in products:
                if (before := product.fp32_precision) not in {"none", "ieee"}:
                    self.undo.append(partial(setattr, product, "fp32_precision", before))
                    product.fp32_precision = "ieee"
        elif (precision := torch.get_float32_matmul_precision()) != "highest":
            self.undo.append(partial(torch.set_float32_matmul_precision, precision))
            torch.set_float32_matmul_precision("highest")
        if torch.are_deterministic_algorithms_enabled() and torch.cuda.is_available():
            warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
            self.undo.append(partial(torch.use_deterministic_algorithms, True, warn_only=warn_only))
            torch.use_deterministic_algorithms(False)

    def give_back(self) -> None:
        for undo in self.undo:
            undo()


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device; on its way to a GPU nobody waits for it, so it goes from pinned memory."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def times(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return left @ right by torch, so on the threads that it has: NumPy's BLAS would start its own."""
    return np.asarray(torch.mm(torch.from_numpy(left), torch.from_numpy(right)).numpy())


def in_blocks(one: Callable[[int], None], begins: Sequence[int], device: torch.device) -> None:
    """
    Call `one` for every beginning of a block, without gradients; on the CPU in as many threads as torch has.

    On a GPU a block is asked for while those before it are computed, `AHEAD` of them at most.

    Raises:
        What `one` raises, for the first block of those for which it does.
    """
    if device.type != "cpu":
        asked: deque[torch.cuda.Event] = deque()
        with isolated():
            for begin in begins:
                one(begin)
                if device.type == "cuda":
                    asked.append(torch.cuda.current_stream(device).record_event())
                    if len(asked) > AHEAD:
                        asked.popleft().synchronize()
        return

    def work_here(begin: int) -> None:
        crew.here.works = True
        crew.here.depth = getattr(crew.here, "depth", 0) + 1  # a thread of the crew is new and has set nothing
        try:
            with torch.no_grad(), unforked():
                one(begin)
        finally:
            crew.here.depth -= 1
            crew.here.works = False

    crew = _crew
    if getattr(crew.here, "works", False):
        for begin in begins:  # a block within a block: the other threads may all be waiting for this one
            one(begin)
        return
    with isolated():
        if crew.pool is None or crew.size == 1 or len(begins) == 1 or is_ending():
            for begin in begins:
                work_here(begin)
        else:
            for _ in crew.pool.map(work_here, begins):
                pass
