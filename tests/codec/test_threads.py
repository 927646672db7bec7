"""Room `threads`: blocks are shared out, torch's own threads rest, and all is as before afterwards."""

import multiprocessing
import threading
import types
from typing import Any

import pytest
import torch

from semid_dataset.codec._threads import AHEAD, in_blocks, isolated, sent

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def three_threads() -> object:
    """Three threads, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


def test_every_block_is_worked_on_once_by_a_single_thread() -> None:
    """Each by one of three threads, with torch's own off and without gradients."""
    begins, states = [], []
    together = threading.Barrier(3, timeout=10)

    def one(begin: int) -> None:
        if begin < 30:
            together.wait()  # passes only if three threads are here at once
        begins.append(begin)
        states.append((torch.get_num_threads(), torch.is_grad_enabled()))

    in_blocks(one, range(0, 100, 10), CPU)
    assert sorted(begins) == list(range(0, 100, 10))
    assert set(states) == {(1, False)}


def test_an_error_of_a_block_reaches_the_caller() -> None:
    """And what follows works as before."""

    def one(begin: int) -> None:
        if begin == 2:
            raise MemoryError("block 2")

    with pytest.raises(MemoryError, match="block 2"):
        in_blocks(one, range(5), CPU)
    done: list[int] = []
    in_blocks(done.append, range(5), CPU)
    assert sorted(done) == [0, 1, 2, 3, 4]


def test_contexts_nest_and_a_block_may_share_out_its_own() -> None:
    """The inner ones change nothing; only the outermost gives the threads back."""
    done: list[int] = []
    with isolated():
        with isolated():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
        in_blocks(lambda begin: in_blocks(done.append, range(begin, begin + 2), CPU), range(0, 20, 2), CPU)
    assert sorted(done) == list(range(20))


def test_two_threads_that_enter_at_once_both_get_their_threads_back() -> None:
    """Also the one that leaves first, and the one that first met torch while the other was inside."""
    inside, seen = threading.Barrier(2, timeout=10), []

    def use(last: bool) -> None:
        with isolated():
            inside.wait()
            if last:
                first.join(10)
        seen.append(torch.get_num_threads())

    first = threading.Thread(target=use, args=(False,))
    second = threading.Thread(target=use, args=(True,))
    first.start()
    second.start()
    second.join(20)
    assert seen == [3, 3]


def _in_child(queue: "multiprocessing.Queue[list[int]]") -> None:
    done: list[int] = []
    in_blocks(done.append, range(4), CPU)
    queue.put(sorted(done))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_forked_meanwhile_does_not_wait_for_its_parents_threads() -> None:
    """It has none of them."""
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[list[int]] = context.Queue()
    with isolated():
        in_blocks(lambda begin: None, range(4), CPU)
        child = context.Process(target=_in_child, args=(queue,), daemon=True)
        child.start()
        assert queue.get(timeout=15) == [0, 1, 2, 3]
        child.join(10)


class HostTensor:
    """What `sent` needs of a tensor; writes down what is asked of it."""

    device = CPU

    def __init__(self, asked: list[Any]) -> None:
        self.asked = asked

    def pin_memory(self) -> "HostTensor":
        self.asked.append("pinned")
        return self

    def to(self, device: torch.device, **options: Any) -> "HostTensor":
        self.asked.append((device.type, options))
        return self


def test_nobody_waits_for_what_is_sent_to_a_gpu() -> None:
    """It goes from pinned memory, without waiting; to the CPU it simply goes."""
    asked: list[Any] = []
    sent(HostTensor(asked), torch.device("cuda"))  # type: ignore[arg-type]
    assert asked == ["pinned", ("cuda", {"non_blocking": True})]
    asked.clear()
    sent(HostTensor(asked), CPU)  # type: ignore[arg-type]
    assert asked == [("cpu", {})]


def test_a_gpu_is_asked_for_few_blocks_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block is asked for before those before it are done, but what was sent for them must not pile up."""
    done: list[str] = []

    def record_event() -> Any:
        number = len([what for what in done if what.startswith("asked")]) - 1
        return types.SimpleNamespace(synchronize=lambda: done.append(f"waited {number}"))

    stream = types.SimpleNamespace(record_event=record_event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    in_blocks(lambda begin: done.append(f"asked {begin}"), range(5), torch.device("cuda"))
    assert AHEAD == 2
    assert done == ["asked 0", "asked 1", "asked 2", "waited 0", "asked 3", "waited 1", "asked 4", "waited 2"]
