"""`semid`, also `python -m semid_dataset`: see `semid_dataset.cli`."""

import sys
from collections.abc import Sequence

__all__ = ["main"]

INTERRUPTED = 130  # 128 + SIGINT, as shells say it
FAILED = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        try:
            import click  # noqa: F401 - asked for here, so that its absence is one line and not a traceback
        except ModuleNotFoundError:
            print('semid: error: the command line needs click: pip install "semid_dataset[cli]"', file=sys.stderr)
            return FAILED
        from semid_dataset.cli import run

        return run(arguments)
    except KeyboardInterrupt:
        print("semid: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
