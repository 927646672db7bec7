"""What keeps a project in order says the same everywhere: commands, versions of Python, its own version, its URL."""

import re
import sys
from pathlib import Path

import pytest

import semid_dataset

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW = (ROOT / ".github" / "workflows" / "ci.yml").read_text() if (ROOT / ".github").exists() else ""

needs_workflow = pytest.mark.skipif(not WORKFLOW, reason="an sdist carries no workflow: it was NOT compared")


@needs_workflow
def test_the_workflow_runs_the_commands_of_ci_run() -> None:
    """Who is green here is green there."""
    local = re.findall(r"^make [\w-]+$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert len(local) == 3
    test = WORKFLOW.partition("\n  package:")[0]
    assert re.findall(r"^ +- run: (.+)$", test, re.MULTILINE) == local


@needs_workflow
def test_every_supported_python_is_run() -> None:
    """From the lowest allowed on, as the classifiers say."""
    (line,) = re.findall(r"^ +python: \[(.+)\]$", WORKFLOW, re.MULTILINE)
    run = [version.strip(' "') for version in line.split(",")]
    claimed = [one.rpartition(" ")[2] for one in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", one)]
    assert run == claimed == [f"3.{minor}" for minor in range(10, 15)]
    assert PROJECT["requires-python"] == f">={run[0]}"


def test_the_version_stands_in_one_place() -> None:
    """The package's; what is built reads it there."""
    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in PROJECT
    written = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["version"]["path"]
    found = re.findall(r'^__version__ = "(.+)"$', (ROOT / written).read_text(), re.MULTILINE)
    assert found == [semid_dataset.__version__]
    assert not re.search(r"^version:", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)


def test_authors_and_url_are_the_same_everywhere() -> None:
    """In the metadata, the citation and the templates."""
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"name: {PROJECT['authors'][0]['name']}" in citation
    home = PROJECT["urls"]["Homepage"]
    assert f"repository-code: {home}\n" in citation
    assert all(url.startswith(home) for url in PROJECT["urls"].values())
    for template in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert all(url.startswith(home) for url in re.findall(r"https?://\S+", template.read_text())), template


def test_templates_and_workflow_are_yaml() -> None:
    """As GitHub reads them."""
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with the extra 'docs': NOT parsed")
    files = [*(ROOT / ".github").rglob("*.yml"), ROOT / "CITATION.cff"]
    for path in files:
        assert isinstance(yaml.safe_load(path.read_text()), dict), path


def test_fragments_of_the_changelog_are_found_by_towncrier() -> None:
    """A name that it does not know would leave a change out of the changelog in silence."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
    kinds = [one["directory"] for one in settings["type"]]
    assert kinds == ["added", "changed", "fixed"]
    assert settings["start_string"] in (ROOT / settings["filename"]).read_text()
    folder = ROOT / settings["directory"]
    for fragment in sorted(folder.iterdir()):
        if fragment.name != "README.md":
            assert re.fullmatch(rf"(\+[\w-]+|[0-9]+)\.({'|'.join(kinds)})\.md", fragment.name), fragment.name
            assert fragment.read_text().strip(), fragment.name
