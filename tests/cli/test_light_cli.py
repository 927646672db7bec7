"""Asking the command line for help loads nothing that takes time to load."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("click", reason='the extra "cli" is missing: pip install ".[cli]"')

HEAVY = {"torch", "pyarrow", "filelock", "platformdirs", "tqdm", "transformers", "safetensors", "orjson"}
ROOT = Path(__file__).parents[2]
COMMANDS = ["generate", "info", "verify", "encode", "export", "diff", "cache", "prune", "report", "worth"]


def loaded_by(*lines: list[str], before: str = "") -> set[str]:
    """Run command lines in one fresh process and return which heavy modules it then has."""
    code = (
        f"import sys\n{before}\nfrom semid_dataset.__main__ import main\n"
        f"codes = [main(line) for line in {list(lines)!r}]\n"
        f"print('loaded', *({HEAVY!r} & set(sys.modules)), *(f'exit{{code}}' for code in codes if code))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_help_loads_neither_torch_nor_anything_heavy() -> None:
    """Also the help of every command, and a line that is refused."""
    assert loaded_by(["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)) == set()
    assert loaded_by(["generate"]) == {"exit2"}


def test_this_check_can_fail() -> None:
    """A heavy module is seen."""
    assert loaded_by(["--help"], before="import filelock") == {"filelock"}


def test_without_click_one_line_says_how_to_install_it() -> None:
    """The entry point is there in every installation."""
    code = (
        "import sys; sys.modules['click'] = None; from semid_dataset.__main__ import main; sys.exit(main(['--help']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr == "semid: error: the command line needs click: pip install click\n"


def test_the_entry_point_is_light_enough_to_be_interrupted() -> None:
    """What it needs to catch a Ctrl-C is there before numpy is; what comes later is imported under its eyes."""
    code = "import sys; import semid_dataset.__main__; print({'numpy', 'click', 'typing'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-S", "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "set()\n"


def test_an_interrupt_waits_for_the_end_of_an_import(tmp_path: Path) -> None:
    """Torch aborts the process otherwise; afterwards it is one line and exit code 130 as ever."""
    (tmp_path / "slow.py").write_text("import os\nos.kill(os.getpid(), 2)\nprint('imported')\n")
    code = (
        "import sys, time; from semid_dataset import __main__; from semid_dataset.cli import _app as cli\n"
        "def run(arguments):\n    import slow\n    time.sleep(9)\n    print('not interrupted')\n"
        "cli.run = run; sys.exit(__main__.main())"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (130, "imported\n", "semid: interrupted\n")
