"""
Spread blocks of work over threads, each block one thread's.

torch splits every operation among threads that wait for each other. Where other programs compute too, one of them is
always late while the others spin: a training then takes ten times as long. And how a product is split decides how it
is rounded. So the heavy loops of this package hand whole blocks to threads that do not meet, and torch's own threads
rest meanwhile: what comes out does not depend on how many threads there are.

On a GPU blocks queue up instead, and so does what is sent to it.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

__all__ = ["OutOfMemory", "in_blocks", "one_thread_each", "sent", "without_autocast"]

AHEAD = 2  # blocks that may wait for a GPU: what was sent for them lies in memory that is not swapped

# torch.OutOfMemoryError came with 2.5; it is the same class where both are.
OutOfMemory: type[Exception] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)


class _Crew:
    """The threads that this process shares out blocks to, for as long as anybody does."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew. A forked child has none of its parent's threads, and may have got the lock in any state."""
        self.lock = threading.Lock()
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
                self.pool = ThreadPoolExecutor(
                    self.size, thread_name_prefix="semid_dataset", initializer=torch.set_num_threads, initargs=(1,)
                )
            self.users += 1
            torch.set_num_threads(1)  # of this thread, and what threads of others' making begin with

    def leave(self) -> None:
        self.here.depth -= 1
        if self.here.depth > 0:
            return
        with self.lock:
            self.users -= 1
            if self.users == 0 and self.pool is not None:
                self.pool.shutdown(cancel_futures=True)
                self.pool = None
            torch.set_num_threads(self.size)


_crew = _Crew()


os.register_at_fork(after_in_child=_crew.forget)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """
    Keep torch to one thread, and the threads of `in_blocks` alive from one call to the next.

    May be nested, and entered by several threads at once.
    """
    crew = _crew
    crew.enter()
    try:
        yield
    finally:
        crew.leave()


def without_autocast(device: torch.device) -> torch.autocast:
    """Return a context that computes in the types it is given: a caller's torch.autocast would round codes."""
    return torch.autocast(device.type, enabled=False)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device; on its way to a GPU nobody waits for it, so it goes from pinned memory."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def in_blocks(one: Callable[[int], None], begins: Sequence[int], device: torch.device) -> None:
    """
    Call `one` for every beginning of a block, without gradients; on the CPU in as many threads as torch has.

    On a GPU a block is asked for while those before it are computed, `AHEAD` of them at most.

    Raises:
        What `one` raises, for the first block of those for which it does.
    """
    if device.type != "cpu":
        asked: deque[torch.cuda.Event] = deque()
        with torch.no_grad(), without_autocast(device):
            for begin in begins:
                one(begin)
                if device.type == "cuda":
                    asked.append(torch.cuda.current_stream(device).record_event())
                    if len(asked) > AHEAD:
                        asked.popleft().synchronize()
        return

    def work(begin: int) -> None:
        with torch.no_grad(), without_autocast(device):
            one(begin)

    def work_here(begin: int) -> None:
        crew.here.works = True
        try:
            work(begin)
        finally:
            crew.here.works = False

    crew = _crew
    if getattr(crew.here, "works", False):
        for begin in begins:  # a block within a block: the other threads may all be waiting for this one
            work(begin)
        return
    with one_thread_each():
        if crew.pool is None or crew.size == 1 or len(begins) == 1:
            for begin in begins:
                work_here(begin)
        else:
            for _ in crew.pool.map(work_here, begins):
                pass
