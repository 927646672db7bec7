"""What the README and the pages of docs/ say is true: examples run, commands exist, links lead somewhere."""

import ast
import importlib
import inspect
import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import world

from semid_dataset import SemanticIdMixin
from semid_dataset._messages import LINES
from semid_dataset.inputs.formats import FORMATS
from semid_dataset.registry import EXECUTORS, EXPORTERS, QUANTIZERS, TRAINERS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")])
# Figures with three decimals that no record has: of papers and of states since changed (docs/downstream.md), of
# bfloat16 beside float32 (docs/scale.md).
OF_OTHERS = {"0.0594", "0.0648", "0.0844", "0.0461", "0.001", "0.049", "0.044", "0.0912", "0.0919", "0.01803"}
# Put before an example that cannot run here, with the reason: <!-- not run: needs a GPU -->
NOT_RUN = re.compile(r"<!--\s*not run:\s*\S[^>]*-->\s*$")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> Iterator[tuple[int, str, bool]]:
    """Yield line, text and whether to run it of every fenced block in a language."""
    opened: list[str] | None = None
    kind, before, first = "", "", 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```") and opened is None:
            opened, kind, first = [], line[3:].strip(), number + 1
        elif line.startswith("```"):
            assert opened is not None
            if kind == language:
                yield first, "".join(f"{text}\n" for text in opened), not NOT_RUN.search(before)
            opened = None
        elif opened is not None:
            opened.append(line)
        elif line.strip():
            before = line
    assert opened is None, f"{page} ends inside of an example"


class MyDataset(world.BareDataset):
    """The dataset of the reader, in the official shape."""

    def __init__(self, data_dir: Path, args: Any = None) -> None:
        super().__init__(data_dir)
        self.root, self.features = self.data_dir, self.mm_emb_ids


class Tokenizer:
    """As far as the examples go, a tokenizer of transformers."""

    eos_token_id = 1

    def __init__(self) -> None:
        self.tokens = ["<pad>", "<eos>"]

    def __len__(self) -> int:
        return len(self.tokens)

    def add_tokens(self, tokens: list[str]) -> int:
        self.tokens += tokens
        return len(tokens)

    def get_vocab(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        vocabulary = self.get_vocab()
        return [vocabulary[token] for token in tokens]


class Inputs(dict[str, torch.Tensor]):
    """As far as the examples go, what a tokenizer returns."""

    @property
    def input_ids(self) -> torch.Tensor:
        return self["input_ids"]


@pytest.fixture(scope="session")
def example_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 items; the first example that asks trains, the others load."""
    data = tmp_path_factory.mktemp("documentation") / "data"
    return world.make_data(data, 300)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_examples_run(page: Path, example_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All examples of a page, one after the other, as somebody would type them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)  # of this process, not of the reader's
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    args = types.SimpleNamespace()

    class MyTestDataset(SemanticIdMixin, MyDataset):
        pass

    ours = MyTestDataset(example_data, args)
    names: dict[str, Any] = {
        "MyDataset": MyDataset,
        "args": args,
        "checkpoint": checkpoint,
        "data_dir": example_data,
        "dataset": ours,
        "inputs": Inputs(input_ids=torch.zeros(1, 3, dtype=torch.int64)),
        "model": types.SimpleNamespace(resize_token_embeddings=int, generate=dict),
        "nn": torch.nn,
        "tokenizer": Tokenizer(),
        "torch": torch,
        "vectors": world.vectors_of(3),
        "history": [world.ITEM0, 404],
        "row": {},
        "table": ours.semantic_id_dict,
        "item_ids": [world.ITEM0, world.ITEM0 + 1],
        "test_dataset": ours,
        "train_dataset": MyTestDataset(example_data, args),
        "__name__": "example",
    }
    for registry in (QUANTIZERS, TRAINERS, EXPORTERS, EXECUTORS, FORMATS):  # what a page makes known stays its own
        monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))
    for line, text, run in blocks(page, "python"):
        # As many lines before it as on the page: a traceback names the place there.
        code = compile("\n" * (line - 1) + text, str(page), "exec")
        if run:
            exec(code, names)
    suites = [value for name, value in names.items() if name.startswith("Test") and isinstance(value, type)]
    for suite in suites:  # of docs/extending.md: what it shows stands the tests that it recommends
        for name, test in inspect.getmembers(suite(), inspect.ismethod):
            if name.startswith("test_"):
                place = tmp_path / f"{suite.__name__}-{name}"
                place.mkdir()
                test(place) if "tmp_path" in inspect.signature(test).parameters else test()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist_with_their_options(page: Path) -> None:
    """A `semid` command that is shown can be typed."""
    pytest.importorskip("click")
    from semid_dataset.cli._app import cli

    text = page.read_text(encoding="utf-8")
    shown = re.findall(r"^(?:\$ )?(semid [^#\n]*)", "\n".join(block for _, block, _ in blocks(page, "")), re.MULTILINE)
    shown += re.findall(r"`(semid [^`]+)`", text)
    for command in shown:
        words = shlex.split(command.replace("\n", " "))[1:]
        options = {option for parameter in cli.params for option in parameter.opts} | {"--help", "--version"}
        if not words[0].startswith("-"):
            assert words[0] in cli.commands, command
            options = {option for parameter in cli.commands[words[0]].params for option in parameter.opts} | {"--help"}
        for word in words:
            if word.startswith("-") and word != "-":
                assert word.partition("=")[0] in options, f"{name_of(page)}: {command}"


def shell_lines(page: Path, start: str) -> list[str]:
    """Lines of shell on a page that begin so, without comments; not those of blocks that cannot run here."""
    lines = [line for _, block, run in blocks(page, "") for line in block.splitlines() if run]
    return [shlex.join(shlex.split(line, comments=True)) for line in lines if line.startswith(start)]


@pytest.fixture
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages speak of."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(tmp_path)
    vectors = world.vectors_of(220)
    for matrix, ids, count in (("x.npy", "ids.txt", 200), ("new.npy", "new.txt", 220)):
        np.save(matrix, vectors[:count])
        Path(ids).write_text("".join(f"product-{k}\n" for k in range(count)))
    columns = {"code": [f"product-{k}" for k in range(200)], "text_bge": vectors[:200].tolist()}
    parquet.write_table(arrow.table({**columns, "id": list(range(200)), "bag": vectors[:200].tolist()}), "y.parquet")
    parquet.write_table(arrow.table(columns), "x.parquet")
    Path("titles.json").write_text('{"product-7": "A lamp"}')
    for name in ("data_dir", "DATA_DIR", "D"):
        world.make_data(tmp_path / name, 60)
    world.write_embeddings(tmp_path / "D", world.vectors_of(60, seed=3), "82")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_run_as_they_stand(page: Path, own_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every `semid` line of every block, in its order: exit code 0, and a word on what to do next."""
    pytest.importorskip("click")
    from semid_dataset.cli._app import run

    for line in shell_lines(page, "semid "):
        if "generate" in line:
            shutil.rmtree("out", ignore_errors=True)  # the page shows another way to make it
        elif "out" in line.split() and not Path("out").exists():
            assert run(shlex.split("generate x.npy --ids ids.txt -o out --epochs 1")) == 0
        capsys.readouterr()
        code = run(shlex.split(line)[1:])
        said = capsys.readouterr()
        assert code == 0, f"{line}\n{said.out}{said.err}"
        assert "Next: " in said.out or line.endswith("-o -"), line


def test_the_five_minutes_work(own_files: Path) -> None:
    """The first three commands of the start pages, on a matrix and a list of ids, each in a process of its own."""
    pytest.importorskip("click")
    pages = [ROOT / page for page in ("README.md", "docs/index.md", "docs/index.zh.md")]
    commands, *others = [[shlex.split(line) for line in shell_lines(page, "semid ")[:3]] for page in pages]
    assert others == [commands, commands]
    assert [command[1] for command in commands] == ["generate", "report", "export"]
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "semid_dataset", *command[1:]],
            capture_output=True, text=True, timeout=50, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    assert Path("report.html").stat().st_size > 10_000
    assert "product-7" in Path("item.index.json").read_text()


def test_the_examples_are_called_as_the_readme_says(own_files: Path) -> None:
    """Scripts with arguments run as they stand; those without are run by `test_examples`."""
    lines = [shlex.split(line) for line in shell_lines(ROOT / "README.md", "python ")]
    assert len(lines) >= 3
    for _, script, *arguments in lines:
        assert (ROOT / script).exists()
        if arguments:
            done = subprocess.run(
                [sys.executable, ROOT / script, *arguments], capture_output=True, text=True, timeout=50, check=False
            )
            assert done.returncode == 0, done.stderr
            assert Path("O/semantic_id_dict.json").exists()


def anchors_of(page: Path) -> set[str]:
    """Anchors of a page's headings, as the site and GitHub make them."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        words = re.sub(r"[^\w\s-]", "", heading.strip().lower())
        found |= {re.sub(r"[\s]+", "-", words), re.sub(r"[-\s]+", "-", words)}
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """To a file of the repository, and to a heading in it where one is named."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors_of(target), f"{name_of(page)} links to {link}"


def test_every_page_has_a_place_in_the_site() -> None:
    """And every place a page."""
    places = re.findall(r"^ +- [^:\n]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(places) == sorted(page.name for page in DOCS.glob("*.md"))


def test_the_site_builds_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `make docs` does, where its extra is installed."""
    pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed: the site was NOT built")
    pytest.importorskip("material", reason="the extra 'docs' is not installed: the site was NOT built")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'id="semid_dataset.SemanticIdTable.metrics"' in (tmp_path / "site" / "api" / "index.html").read_text()


def test_figures_are_those_of_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are made of the records (docs/figures.py), and a figure in a text is in one of them, to the last digit."""
    monkeypatch.syspath_prepend(str(DOCS))
    figures = importlib.import_module("figures")
    records = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "benchmarks" / "results").glob("*.md"))
    recorded = set(re.findall(r"[0-9]+\.[0-9]+", records))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert figures.filled(text) == text, f"{name_of(page)}: run python docs/figures.py"
        prose = re.sub(r"(?s)```.*?```|<svg.*?</svg>", "", text)
        said = set(re.findall(r"(?<![\w.])[0-9]+\.[0-9]{3,}(?![\w.])", prose))
        assert said - recorded <= OF_OTHERS, f"{name_of(page)} has figures that no record has"


def test_the_readme_is_short() -> None:
    """What does not fit has a page of its own."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_variable_is_documented() -> None:
    """What is read from the environment stands in the table of the page on production."""
    tree = ast.parse((ROOT / "semid_dataset" / "environment.py").read_text())
    read = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    variables = {name for name in read if re.fullmatch(r"[A-Z]{2,}(_[A-Z]+)*", name)}
    assert "SEMID_PARENT" in variables
    page = (DOCS / "production.md").read_text(encoding="utf-8")
    assert {name for name in variables if f"`{name}`" not in page} == set()


def test_log_lines_are_quoted_as_they_are() -> None:
    """Monitoring that greps for what the page says finds it."""
    page = (DOCS / "production.md").read_text(encoding="utf-8")
    table = page.partition("| line begins with |")[2].partition("\n\n")[0]
    quoted = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(quoted) > 8
    patterns = [re.sub(r"\\\{\w+(:[^}]*)?\\\}", ".*", re.escape(english)) for english, _ in LINES.values()]
    for line in quoted:
        starts = [english for english, _ in LINES.values() if english.startswith(line)]
        assert starts or any(re.match(pattern[: len(pattern)], line + "0") for pattern in patterns), line


def test_metrics_are_called_as_documented(example_data: Path) -> None:
    """Every key in the table of the page on production is one."""
    page = (DOCS / "production.md").read_text(encoding="utf-8")
    table = page.partition("| key | alarm when |")[2].partition("\n\n")[0]
    keys = {key for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)}
    assert "coverage" in keys
    assert keys <= world.MixinDataset(example_data).semantic_id_dict.metrics([1]).keys()
