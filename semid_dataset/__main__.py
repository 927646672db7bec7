"""`semid`, also `python -m semid_dataset`: see `semid_dataset.cli`."""

import sys

TYPE_CHECKING = False  # what is imported up here is not yet safe from a Ctrl-C
if TYPE_CHECKING:
    from types import FrameType

__all__ = ["main"]

INTERRUPTED = 130  # 128 + SIGINT, as shells say it
FAILED = 3
AGAIN = 0.02  # seconds until an interrupt that fell into an import is tried again


def main(arguments: "list[str] | None" = None) -> int:
    """Run the command line and return its exit code. Without arguments: with those of this process, and its signals."""
    try:
        if arguments is None:
            import signal

            for number in (signal.SIGINT, signal.SIGALRM):
                signal.signal(number, _interrupt)
        try:
            import click  # noqa: F401 - asked for here, so that its absence is one line and not a traceback
        except ModuleNotFoundError:
            print("semid: error: the command line needs click: pip install click", file=sys.stderr)
            return FAILED
        from semid_dataset.cli import _app

        return _app.run(arguments)
    except KeyboardInterrupt:
        print("semid: interrupted", file=sys.stderr)
        return INTERRUPTED
    finally:
        if arguments is None:
            import signal  # it may have been interrupted above

            for number in (signal.SIGINT, signal.SIGALRM):  # it is done; the interpreter only has to end
                signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, frame: "FrameType | None") -> None:
    """
    Raise KeyboardInterrupt, but not inside of an import.

    Torch aborts the process where one is raised while its C++ half is imported, and callbacks of the import system
    swallow it.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            import signal

            signal.setitimer(signal.ITIMER_REAL, AGAIN)
            return
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
