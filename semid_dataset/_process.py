"""
What became of the process that this runs in: forked, one rank of several, a worker of a DataLoader, being compiled.

Looked up where it matters and without importing torch: a module that nobody has loaded has done nothing here.
"""

import importlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from semid_dataset.errors import ForkError

__all__ = [
    "check_imports",
    "fellow_ranks",
    "forks",
    "in_loader_worker",
    "is_ending",
    "outside_compiler",
    "raised_by_signal",
    "unforked",
]

_forks = 0


def _count() -> None:
    global _forks  # noqa: PLW0603 - a process has one
    _forks += 1


os.register_at_fork(after_in_child=_count)


def forks() -> int:
    """Return how many forks lie between the program that was started and this process; a lock is of one of them."""
    return _forks


class _Gate:
    """What forks wait for: the threads that are within `unforked`."""

    def __init__(self) -> None:
        self.here = threading.local()  # .depth: contexts that this thread is in
        self.changed = threading.Condition(threading.RLock())
        self.inside = 0  # threads

    def own(self) -> int:
        return int(getattr(self.here, "depth", 0) > 0)

    def close(self) -> None:
        """Let nobody else in, and wait until all others are out; the lock stays held until the fork is done."""
        self.changed.acquire()
        while self.inside > self.own():
            self.changed.wait()

    def open(self) -> None:
        self.changed.release()

    def renew(self) -> None:
        """Begin anew in a child, which has the forking thread alone."""
        self.changed = threading.Condition(threading.RLock())
        self.inside = self.own()


_gate = _Gate()
os.register_at_fork(before=_gate.close, after_in_parent=_gate.open, after_in_child=_gate.renew)


@contextmanager
def unforked() -> Iterator[None]:
    """
    Have a fork of this process, by another thread, wait until this is over; may be nested.

    OpenBLAS ends its threads before a fork. Where a product of NumPy's is on its way in another thread, both wait for
    the other for ever, and the program with them. Entered around single products, therefore, and never around what
    waits for other threads: those could not enter while a fork waits.
    """
    gate = _gate
    depth = getattr(gate.here, "depth", 0)
    if depth == 0:
        with gate.changed:
            gate.inside += 1
    gate.here.depth = depth + 1
    try:
        yield
    finally:
        gate.here.depth = depth
        if depth == 0:
            with gate.changed:
                gate.inside -= 1
                gate.changed.notify_all()


def in_loader_worker() -> bool:
    """Whether this process is a DataLoader's worker."""
    loader = sys.modules.get("torch.utils.data._utils.worker")
    return loader is not None and loader.get_worker_info() is not None


def fellow_ranks(launched: int) -> str | None:
    """
    Say of how many ranks this process is one ("8", or "several" where nobody knows); None if it computes alone.

    Args:
        launched: how many were started, as far as environment variables tell.

    An initialized process group knows best. A child of `torch.multiprocessing.spawn` is a rank before it joins one.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        launched = int(distributed.get_world_size())
    elif launched < 2:
        target = getattr(multiprocessing.current_process(), "_target", None)
        return "several" if getattr(target, "__module__", None) == "torch.multiprocessing.spawn" else None
    return str(launched) if launched > 1 else None


def is_ending() -> bool:
    """Whether the main thread is over: threads of a pool can no more be started, nor torch imported."""
    return not threading.main_thread().is_alive()


def _is_subinterpreter() -> bool:
    name = "_interpreters" if "_interpreters" in sys.builtin_module_names else "_xxsubinterpreters"
    try:
        known: Any = importlib.import_module(name)
        return bool(known.get_current() != known.get_main())
    except (ImportError, AttributeError):
        return False


def raised_by_signal(error: BaseException) -> BaseException | None:
    """
    Return the exception, of an error and those it came from, that the handler of a signal raised; None if none did.

    It is the program's own, a time limit most often, and says nothing of what it interrupted.
    """
    import signal
    import traceback  # of use where something failed, and 5 ms to import

    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    codes = {getattr(_function_of(handler), "__code__", None) for handler in handlers if callable(handler)} - {None}
    found: BaseException | None = error
    seen: set[int] = set()
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if any(frame.f_code in codes for frame, _ in traceback.walk_tb(found.__traceback__)):
            return found
        found = found.__cause__ or found.__context__
    return None


def _function_of(handler: Any) -> Any:
    """Return the function behind a method, a partial or an object that is called."""
    handler = getattr(handler, "func", handler)
    if not hasattr(handler, "__code__") and not hasattr(handler, "__func__"):
        handler = type(handler).__call__
    return getattr(handler, "__func__", handler)


def check_imports(*packages: str) -> None:
    """
    Make sure that this process can import these packages.

    Python's lock of a module that another thread was importing when this process was forked stays locked here for
    ever: the thread that holds it does not exist. And torch cannot be imported at the end of a process, where it
    raises, nor in a sub-interpreter, where it waits for ever.

    Raises:
        ForkError: one cannot be imported; it names the module, and what to call.
    """
    if "torch" in packages and "torch" not in sys.modules:
        if is_ending():
            raise ForkError(
                "This process is ending, so torch can be imported no more. Nothing was changed. "
                "Call dataset.prepare_semantic_ids() before its last functions (atexit, __del__) run."
            )
        if _is_subinterpreter():
            raise ForkError(
                "This is a sub-interpreter, in which torch cannot be imported. Nothing was changed. Make the IDs in a "
                "process of their own (semid generate), which are then read here; or let this run in the main "
                "interpreter (of mod_wsgi: WSGIApplicationGroup %{GLOBAL})."
            )
    locks: dict[str, Any] = getattr(getattr(importlib, "_bootstrap", None), "_module_locks", {})
    alive = sys._current_frames()
    for name, reference in list(locks.items()):
        owner = getattr(reference(), "owner", None)
        if owner and owner not in alive and name.split(".")[0] in packages:
            raise ForkError(
                f"This process was forked while another thread of its parent was importing {name}, so that it can "
                "never import it itself. Nothing was changed. Call dataset.prepare_semantic_ids() before the process "
                "forks, or start it with the method 'spawn' or 'forkserver'."
            )


@contextmanager
def outside_compiler() -> Iterator[None]:
    """Keep torch.compile, where it follows a caller into this package, from compiling what it finds here."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    frames: Any = sys.modules["torch._C._dynamo.eval_frame"]
    before = frames.set_eval_frame(None)
    try:
        yield
    finally:
        frames.set_eval_frame(before)
