"""
How far a run is: whoever works says it in one place, and whoever wants to know listens there.

Work is told of as stages, which may lie in each other, and as steps or bytes that are done. A bar on the terminal, the
lines of epochs in the log, the heartbeat that keeps others waiting and the timings that a table states are listeners;
none of them is known to the code that works.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from semid_dataset._messages import tell

__all__ = ["Bars", "EpochLines", "Heartbeat", "Listener", "Progress", "shown"]

EPOCHS_PER_LINE = 5


class Listener:
    """What hears of progress. Its methods do nothing: a listener overrides what it cares for, and must not raise."""

    def begin(self, stage: str, total: int, unit: str) -> None:
        """Hear that a stage begins; `total` is 0 where nobody counts."""

    def advance(self, done: int) -> None:
        """Hear that so much more of the innermost stage is done; 0 says that work goes on, less is done again."""

    def epoch(self, number: int, epochs: int, loss: float) -> None:
        """Hear that an epoch, or a round of k-means, is over."""

    def end(self, stage: str) -> None:
        """Hear that a stage is over, whether it succeeded or not."""


class Progress:
    """
    What those who work tell how far they are.

    Args:
        listeners: told in this order.

    Attributes:
        stages: seconds of every outermost stage that is over, by name.
    """

    def __init__(self, *listeners: Listener) -> None:
        self.stages: dict[str, float] = {}
        self._listeners = listeners
        self._depth = 0
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since this was made."""
        return time.perf_counter() - self._started

    @contextmanager
    def stage(self, name: str, total: int = 0, unit: str = "B") -> Iterator[None]:
        """
        Say that what is done inside belongs to a stage.

        Args:
            name: of the stage.
            total: how much there is to do, in units; 0 where nobody counts.
            unit: "B" for bytes, or what else is counted.
        """
        began = time.perf_counter()
        self._depth += 1
        for listener in self._listeners:
            listener.begin(name, total, unit)
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self.stages[name] = self.stages.get(name, 0.0) + time.perf_counter() - began
            for listener in self._listeners:
                listener.end(name)

    def advance(self, done: int = 0) -> None:
        """Say that so much more of the stage is done; 0 says that work goes on."""
        for listener in self._listeners:
            listener.advance(done)

    def epoch(self, number: int, epochs: int, loss: float) -> None:
        """Say that an epoch is over: its number, how many there are at most, and its loss."""
        for listener in self._listeners:
            listener.epoch(number, epochs, loss)


class Bars(Listener):
    """A bar for every stage that counts, where standard error is a terminal and tqdm is there (extra "progress")."""

    def __init__(self) -> None:
        self._bars: list[Any] = []

    def begin(self, stage: str, total: int, unit: str) -> None:
        """Show an empty bar."""
        self._bars.append(_bar(stage, total, unit) if total and _on_terminal() else None)

    def advance(self, done: int) -> None:
        """Move the bar of the innermost stage."""
        if done and self._bars and self._bars[-1] is not None:
            self._bars[-1].update(done)

    def end(self, stage: str) -> None:
        """Leave the bar as it is."""
        bar = self._bars.pop()
        if bar is not None:
            bar.close()


def _on_terminal() -> bool:
    """Whether standard error is one; a service may have closed it, or have none."""
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):
        return False


def _bar(stage: str, total: int, unit: str) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, desc=stage, unit=unit, unit_scale=unit == "B", leave=True)


class EpochLines(Listener):
    """A line in the log after every fifth epoch, and after the last one."""

    def __init__(self) -> None:
        self._waiting: dict[str, Any] = {}

    def epoch(self, number: int, epochs: int, loss: float) -> None:
        """Say it, or keep it in case it was the last."""
        self._waiting = {"epoch": number, "epochs": epochs, "loss": loss}
        if number % EPOCHS_PER_LINE == 0 or number == epochs:
            self.end("")

    def end(self, stage: str) -> None:
        """Say the last epoch where training stopped early."""
        if self._waiting:
            tell("epoch", **self._waiting)
            self._waiting = {}


class Heartbeat(Listener):
    """
    Lets others see that this process is alive.

    Args:
        beat: called whenever anything is told, which may be often.
    """

    def __init__(self, beat: Callable[[], None]) -> None:
        self._beat = beat

    def begin(self, stage: str, total: int, unit: str) -> None:
        """Show a sign of life."""
        self._beat()

    def advance(self, done: int) -> None:
        """Show a sign of life."""
        self._beat()

    def epoch(self, number: int, epochs: int, loss: float) -> None:
        """Show a sign of life."""
        self._beat()

    def end(self, stage: str) -> None:
        """Show a sign of life."""
        self._beat()


def shown(heartbeat: Callable[[], None] = lambda: None) -> Progress:
    """Return a progress that users see, as bars and as lines of the log, and that those who wait see by `heartbeat`."""
    return Progress(Heartbeat(heartbeat), Bars(), EpochLines())
