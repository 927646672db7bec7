"""Packages import only from floors below, and the warm way never imports torch."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import semid_dataset

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
PACKAGE = Path(semid_dataset.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
TORCH_MODULES = {
    "codec/_threads.py",
    "codec/_kmeans.py",
    "codec/_networks.py",
    "codec/online.py",
    "codec/_search.py",
    "codec/residual.py",
    "codec/unique.py",
    "codec/train.py",
    "codec/_codebooks.py",
    "codec/_rqvae.py",
    "codec/_faiss.py",
    "codec/metrics.py",
    "demo/recommender.py",
}
# Imported by the functions that need them.
LATE = {"torch", "filelock", "platformdirs", "tqdm", "pyarrow", "jinja2", "markupsafe"}


def floors() -> list[list[str]]:
    """The floors of the import contract, top to bottom; modules of one floor stand side by side."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [re.split(r"\s*[|:]\s*", layer) for layer in layers]


def imports(module: str, *, top: bool) -> set[str]:
    """Names of modules that a module imports; with `top` only those that run at import time."""
    tree = ast.parse((PACKAGE / module).read_text())
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


def test_imports_point_down() -> None:
    """The contract in pyproject.toml, as `make check` runs it; a package without a floor breaks it, too."""
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_that_contract_can_break(tmp_path: Path) -> None:
    """An import that points up is seen, also one inside a function."""
    package = tmp_path / "house"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "high.py").write_text("")
    (package / "low.py").write_text("def late():\n    from house import high\n")
    (tmp_path / ".importlinter").write_text(
        "[importlinter]\nroot_package = house\n"
        "[importlinter:contract:1]\nname = floors\ntype = layers\nlayers =\n    house.high\n    house.low\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "house.low" in done.stdout


def test_contributing_shows_the_floors_of_the_contract() -> None:
    """The table in CONTRIBUTING.md and the contract name the same packages in the same order."""
    rows = re.findall(r"^\| (`[^|]+`) \|", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.M)
    assert [re.findall(r"`(\w+)/?`", row) for row in rows] == floors()


@pytest.mark.parametrize("module", sorted(set(MODULES) - TORCH_MODULES))
def test_warm_modules_leave_torch_alone(module: str) -> None:
    """Torch, and a module that imports it, is entered inside the function that needs it."""
    at_import = imports(module, top=True)
    assert not {name for name in at_import if name.split(".")[0] in LATE}
    torch_modules = {f"semid_dataset.{path[:-3].replace('/', '.')}" for path in TORCH_MODULES}
    assert not at_import & torch_modules


def test_importing_the_package_imports_no_heavy_module() -> None:
    """Nor those that only some ways need."""
    heavy = LATE | {"orjson", "safetensors"}
    code = (
        f"import sys, semid_dataset; sys.exit(str({heavy!r} & set(sys.modules)) if {heavy!r} & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"environment.py"}))
def test_only_one_module_reads_the_environment(module: str) -> None:
    """Anywhere else an answer would depend on when it was asked."""
    source = (PACKAGE / module).read_text()
    assert "os.environ" not in source
    assert "getenv" not in source
