"""Asking the command line for help loads nothing that takes time to load."""

import subprocess
import sys

import pytest

pytest.importorskip("click", reason='the extra "cli" is missing: pip install ".[cli]"')

HEAVY = {"torch", "pyarrow", "filelock", "platformdirs", "tqdm", "transformers", "safetensors", "orjson"}
COMMANDS = ["generate", "info", "verify", "encode", "export", "diff", "prune", "report"]


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
    assert done.stderr == 'semid: error: the command line needs click: pip install "semid_dataset[cli]"\n'
