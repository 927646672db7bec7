"""Progress is told once, and everybody who listens hears it."""

import logging
import sys
from types import ModuleType
from typing import Any

import pytest

from semid_dataset.progress import Bars, EpochLines, Heartbeat, Listener, Progress, shown


class Heard(Listener):
    """Notes what it hears."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def begin(self, stage: str, total: int, unit: str) -> None:
        self.said.append(("begin", stage, total, unit))

    def advance(self, done: int) -> None:
        self.said.append(done)

    def epoch(self, number: int, epochs: int, loss: float) -> None:
        self.said.append((number, epochs, loss))

    def end(self, stage: str) -> None:
        self.said.append(("end", stage))


def test_every_listener_hears_everything_in_order() -> None:
    first, second = Heard(), Heard()
    progress = Progress(first, second)
    with progress.stage("encoding", 10):
        progress.advance(4)
        progress.advance()
        progress.epoch(1, 2, 0.5)
    wanted = [("begin", "encoding", 10, "B"), 4, 0, (1, 2, 0.5), ("end", "encoding")]
    assert first.said == second.said == wanted


def test_a_stage_that_fails_is_over_too() -> None:
    heard = Heard()
    progress = Progress(heard)
    with pytest.raises(ValueError, match="no"), progress.stage("outer"), progress.stage("inner"):
        raise ValueError("no")
    assert heard.said[2:] == [("end", "inner"), ("end", "outer")]
    assert list(progress.stages) == ["outer"]


def test_outermost_stages_are_timed_and_add_up() -> None:
    """What lies inside another stage is part of it; a stage that comes again counts once, with both times."""
    progress = Progress()
    with progress.stage("reading"), progress.stage("Loading mm_emb", 3, "it"):
        pass
    once = progress.stages["reading"]
    with progress.stage("reading"):
        pass
    assert list(progress.stages) == ["reading"]
    assert progress.stages["reading"] > once
    assert progress.seconds >= progress.stages["reading"]


def test_an_epoch_is_said_every_fifth_time_and_where_training_stops(caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress(EpochLines())
    with caplog.at_level(logging.INFO, "semid_dataset"), progress.stage("training"):
        for number in range(1, 8):
            progress.epoch(number, 20, 1 / number)
    assert [message.split(":")[0] for message in caplog.messages] == ["Epoch 5/20", "Epoch 7/20"]


def test_the_last_epoch_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress(EpochLines())
    with caplog.at_level(logging.INFO, "semid_dataset"), progress.stage("training"):
        for number in range(1, 11):
            progress.epoch(number, 10, 0.1)
    assert [message.split(":")[0] for message in caplog.messages] == ["Epoch 5/10", "Epoch 10/10"]


def test_whatever_is_told_is_a_sign_of_life() -> None:
    beats: list[None] = []
    progress = Progress(Heartbeat(lambda: beats.append(None)))
    with progress.stage("encoding"):
        progress.advance(3)
        progress.epoch(1, 1, 0.0)
    assert len(beats) == 4


class Bar:
    """A stand-in for tqdm's."""

    made: list["Bar"] = []  # noqa: RUF012

    def __init__(self, **options: Any) -> None:
        self.options, self.done, self.closed = options, 0, False
        Bar.made.append(self)

    def update(self, done: int) -> None:
        self.done += done

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    module = ModuleType("tqdm")
    module.tqdm = Bar  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tqdm", module)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    Bar.made = []
    return Bar.made


def test_a_terminal_shows_a_bar_for_every_stage_that_counts(terminal: list[Bar]) -> None:
    progress = Progress(Bars())
    with progress.stage("reading"), progress.stage("Loading mm_emb", 2, "it"):
        progress.advance(1)
        progress.advance(0)
        progress.advance(1)
    (bar,) = terminal
    assert bar.options["desc"] == "Loading mm_emb"
    assert bar.options["total"] == bar.done == 2
    assert bar.closed


def test_the_bar_is_the_originals(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its description stands in front."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress(Bars())
    with progress.stage("Loading mm_emb", 1, "it"):
        progress.advance(1)
    assert "Loading mm_emb: 100%" in capsys.readouterr().err


def test_without_tqdm_or_a_terminal_there_is_no_bar(
    terminal: list[Bar], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with Progress(Bars()).stage("Encoding", 5):
        pass
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with shown(lambda: None).stage("Encoding", 5):
        pass
    assert terminal == []
    assert capsys.readouterr() == ("", "")
