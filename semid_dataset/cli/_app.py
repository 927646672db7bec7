"""
The command line: make IDs, look at them, check them, carry them elsewhere, clean up.

A file a command; each returns an `Answer`. Torch, pyarrow and the rooms that need them are imported inside the
commands: `--help` loads none of them.

Exit codes: 0 done; 1 something was found wrong (verify, diff, show) or nothing was found (info); 2 the command was
called wrongly; 3 it failed, and the line on stderr says why; 4 stale IDs answer (info); 130 it was interrupted. Files
are written whole or not at all.
"""

import io
import json
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress

import click

from semid_dataset import __version__
from semid_dataset._messages import said, speak
from semid_dataset.cli._answer import FAILED, INTERRUPTED, USAGE
from semid_dataset.cli.cache import cache
from semid_dataset.cli.compare import compare
from semid_dataset.cli.demo import demo
from semid_dataset.cli.diff import diff
from semid_dataset.cli.encode import encode
from semid_dataset.cli.export import export
from semid_dataset.cli.generate import generate
from semid_dataset.cli.history import history
from semid_dataset.cli.info import info
from semid_dataset.cli.pin import pin
from semid_dataset.cli.prune import prune
from semid_dataset.cli.report import report
from semid_dataset.cli.show import show
from semid_dataset.cli.verify import verify
from semid_dataset.cli.worth import worth
from semid_dataset.environment import Environment
from semid_dataset.errors import SemanticIdWarning, SemidError

__all__ = ["cli", "run"]

TEMPORARY = re.compile(r"\.([^/]+)\.[0-9a-f]{12,32}\.tmp$")


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; whatever goes wrong is one line on stderr, never a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    speak(Environment.read().language)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files are bytes, and not all of them are texts
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SemanticIdWarning)  # the log line says the same
            code = cli.main(args=given, prog_name="semid", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (click.exceptions.Abort, KeyboardInterrupt):
        line, failure = "semid: interrupted; files that were there before are as they were", INTERRUPTED
    except click.ClickException as error:
        line, failure = _usage(error), USAGE
    except Exception as error:  # noqa: BLE001 - a fault of ours is one line too; -v shows where
        line, failure = f"semid: error: {' '.join(_reason(error).split())}", FAILED
    with suppress(OSError):
        click.echo(said(line), err=True)
        if "--json" in given:
            click.echo(json.dumps({"error": line, "exit_code": failure}, ensure_ascii=False))
    return failure


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "semid"
    if type(error).__name__ == "NoArgsIsHelpError" and context is not None:  # of click 8.2 and newer
        return str(context.get_help())
    said = " ".join(error.format_message().split()).rstrip(".")
    return f"{where}: error: {said}{'' if said.endswith('?') else '.'} See: {where} --help"


def _reason(error: Exception) -> str:
    if isinstance(error, SemidError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, OSError):
        if error.filename is None:
            return str(error)
        named = TEMPORARY.sub(r"\1", str(error.filename))  # people know the file, not what it is written to first
        return f"'{named}': {error.strerror}"
    return f"unexpected {type(error).__name__}: {error} (please report it; -v shows where)"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="%(version)s")
def cli() -> None:
    """
    Semantic IDs for items that have embeddings.

    \b
    semid demo                                    see it work, in a minute
    semid generate x.npy --ids ids.txt -o out     IDs of your own embeddings
    semid generate DATA_DIR                       IDs of a data directory (creative_emb/), into its cache
    semid report out -o report.html               look at them
    semid show out ITEM                           one item, level by level, and its neighbours
    semid worth out --sequences seen.txt          what they are worth to a recommender, before one is trained
    semid export out -o item.index.json           carry them elsewhere

    Exit codes: 0 done, 1 found wrong (verify, diff, show) or found nothing (info), 2 called wrongly, 3 failed,
    4 stale IDs answer (info), 130 interrupted. Progress is shown on a terminal only, and nothing is coloured (as
    NO_COLOR asks).
    """


_COMMANDS = (
    demo, generate, info, verify, encode, export, diff, compare, cache, history, pin, prune, report, show, worth
)  # fmt: skip
for _one in _COMMANDS:
    cli.add_command(_one)
