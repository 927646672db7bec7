"""Modules import only from above, and the warm way never imports torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import semid_dataset

PACKAGE = Path(semid_dataset.__file__).parent
ROOMS = [
    "errors",
    "config",
    "messages",
    "files",
    "container",
    "id_json",
    "threads",
    "kmeans",
    "fusion",
    "quantizer",
    "collisions",
    "quality_view",
    "table",
    "store",
    "lineage",
    "pruning",
    "sources",
    "rows",
    "array_pickle",
    "features",
    "parts",
    "stages",
    "engines",
    "vectors",
    "behaviour",
    "training",
    "quality",
    "birth",
    "scale",
    "healing",
    "resolve",
    "commands",
    "dataset",
    "exports",
    "charts",
    "report",
    "cli",
]
TORCH_ROOMS = {"threads", "kmeans", "quantizer", "collisions", "training", "quality"}


def imports(room: str, *, top: bool) -> set[str]:
    """Names of modules that a room imports; with `top` only those that run at import time."""
    tree = ast.parse((PACKAGE / f"{room}.py").read_text())
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            if top and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                found.add(child.module or "")
                found.update(f"{child.module}.{alias.name}" for alias in child.names)
            visit(child)

    visit(tree)
    return found


def test_every_module_is_a_room() -> None:
    """A module that is not in the list has no place in the order."""
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_above(room: str) -> None:
    """Also inside functions: an import that is late still points somewhere."""
    ours = {name.split(".")[1] for name in imports(room, top=False) if name.startswith("semid_dataset.")}
    below = {name for name in ours & set(ROOMS) if ROOMS.index(name) >= ROOMS.index(room)}
    assert not below, f"{room} imports {below} from below"


@pytest.mark.parametrize("room", sorted(set(ROOMS) - TORCH_ROOMS))
def test_warm_rooms_leave_torch_alone(room: str) -> None:
    """A torch room, or torch, is entered inside the function that needs it."""
    at_import = imports(room, top=True)
    assert not {
        name for name in at_import if name.split(".")[0] in {"torch", "filelock", "platformdirs", "tqdm", "pyarrow"}
    }
    assert not {name.split(".")[1] for name in at_import if name.startswith("semid_dataset.")} & TORCH_ROOMS


def test_this_check_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An import from below is seen, also one inside a function."""
    (tmp_path / "errors.py").write_text("def late():\n    from semid_dataset.store import Root\n")
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    with pytest.raises(AssertionError, match="from below"):
        test_a_room_imports_only_from_above("errors")


def test_importing_the_package_imports_no_heavy_module() -> None:
    """Nor those that only some ways need."""
    heavy = {"torch", "filelock", "platformdirs", "tqdm", "pyarrow", "orjson", "safetensors"}
    code = (
        f"import sys, semid_dataset; sys.exit(str({heavy!r} & set(sys.modules)) if {heavy!r} & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "config"])
def test_only_config_reads_the_environment(room: str) -> None:
    """Anywhere else an answer would depend on when it was asked."""
    source = (PACKAGE / f"{room}.py").read_text()
    assert "os.environ" not in source
    assert "getenv" not in source
