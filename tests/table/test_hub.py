"""Tables and quantizers to and from a hub, against one that the test serves on loopback."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from semid_dataset import SemanticIdConfig, SemanticIdTable
from semid_dataset.api import generate_from_vectors
from semid_dataset.codec.residual import ResidualQuantizer
from semid_dataset.errors import TableError

SMALL = SemanticIdConfig(num_quantizers=3, codebook_size=16, num_epochs=1, algorithm="rqkmeans")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as creating, committing and downloading take."""

    repositories: dict[str, dict[str, dict[str, bytes]]]  # name -> branch -> path -> content
    asked: list[str]

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def answer(self, value: object, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = unquote(self.path).split("?")[0].strip("/").split("/")
        self.asked.append(self.path)
        if parts[1:3] == ["repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.repositories.setdefault(name, {"main": {}})
            return self.answer({"url": f"http://{self.headers['Host']}/{name}"})
        if parts == ["api", "validate-yaml"]:
            return self.answer({"warnings": [], "errors": []})
        name, branches = "/".join(parts[2:4]), self.repositories["/".join(parts[2:4])]
        if parts[4] == "branch":
            branches[parts[5]] = dict(branches["main"])
            return self.answer({})
        if parts[4] == "preupload":
            files = json.loads(body)["files"]
            return self.answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                branches[parts[5]][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        oid = hashlib.sha1(body).hexdigest()
        url = f"http://{self.headers['Host']}/{name}/commit/{oid}"
        return self.answer({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = unquote(self.path).split("?")[0].strip("/").split("/")
        self.asked.append(self.path)
        if parts[0] == "api":
            return self.answer({"id": "/".join(parts[2:4]), "siblings": [], "sha": "0" * 40})
        branches = self.repositories.get("/".join(parts[:2]))
        if branches is None:
            return self.missing("RepoNotFound")
        if parts[3] not in branches:
            return self.missing("RevisionNotFound")
        content = branches[parts[3]].get("/".join(parts[4:]))
        if content is None:
            return self.missing("EntryNotFound")
        self.send_response(200)
        self.send_header("X-Repo-Commit", hashlib.sha1(repr(sorted(branches[parts[3]])).encode()).hexdigest())
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The variables of a process that has this hub and no other."""
    pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
    Hub.repositories, Hub.asked = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": "hf_of_the_test",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    server.shutdown()
    thread.join()
    server.server_close()


def run(code: str, variables: dict[str, str], *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def table(tmp_path: Path) -> SemanticIdTable:
    x = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    return generate_from_vectors(np.arange(300), x, output_dir=tmp_path / "out", config=SMALL)


PUSH = """
import sys
from semid_dataset import SemanticIdTable
print(SemanticIdTable.open(sys.argv[1]).push_to_hub("me/shop", **eval(sys.argv[2])))
"""
PULL = """
import sys, numpy as np
from semid_dataset import SemanticIdTable, ResidualQuantizer
where = eval(sys.argv[1])
table = SemanticIdTable.from_pretrained("me/shop", **where)
x = np.ones((2, 8), np.float32)
same = (ResidualQuantizer.from_pretrained("me/shop", **where).encode(x) == table.quantizer.encode(x)).all()
print(table.computed_digest, len(table), bool(same))
"""


def test_a_table_goes_to_the_hub_and_comes_back(hub: dict[str, str], table: SemanticIdTable) -> None:
    """IDs, quantizer and digest; a process that is offline afterwards takes what the hub's cache keeps."""
    pushed = run(PUSH, hub, table.path, "{}")
    assert pushed.returncode == 0, pushed.stderr
    assert "/me/shop/commit/" in pushed.stdout
    there = Hub.repositories["me/shop"]["main"]
    assert {"semid_table.safetensors", "semid_table.safetensors.digest", "README.md"} <= set(there)
    expected = f"{table.computed_digest} 300 True\n"
    pulled = run(PULL, hub, "{}")
    assert pulled.stdout == expected, pulled.stderr
    asked = len(Hub.asked)
    offline = run(PULL, hub | {"HF_HUB_OFFLINE": "1"}, "{}")
    assert offline.stdout == expected, offline.stderr
    assert len(Hub.asked) == asked


def test_a_branch_is_a_place_of_its_own(hub: dict[str, str], table: SemanticIdTable) -> None:
    assert run(PUSH, hub, table.path, "{'revision': 'next', 'private': True}").returncode == 0
    assert not Hub.repositories["me/shop"]["main"]
    assert run(PULL, hub, "{'revision': 'next'}").stdout.startswith(table.computed_digest)
    nothing = run(PULL, hub, "{}")
    assert "The repository me/shop holds no semid_table.safetensors." in nothing.stderr


def test_an_unknown_repository_is_an_error(hub: dict[str, str]) -> None:
    found = run(PULL, hub, "{}")
    assert found.returncode == 1
    assert "RepositoryNotFoundError" in found.stderr


def test_a_folder_comes_before_a_repository(tmp_path: Path, table: SemanticIdTable) -> None:
    """As `generate` and `save_pretrained` write it; a quantizer is read from either."""
    saved = table.save_pretrained(tmp_path / "saved")
    for folder in (tmp_path / "out", saved):
        assert SemanticIdTable.from_pretrained(folder).to_dict() == table.to_dict()
        assert ResidualQuantizer.from_pretrained(folder).codebook_sizes == (16, 16, 16)
    with pytest.raises(TableError, match="no revision 'main'"):
        SemanticIdTable.from_pretrained(saved, revision="main")
    with pytest.raises(FileNotFoundError, match="no name of a repository"):
        SemanticIdTable.from_pretrained(tmp_path / "nothing")
    with pytest.raises(TableError, match=r"holds no semid_table\.safetensors"):
        SemanticIdTable.from_pretrained(tmp_path)


def test_the_card_says_what_the_table_is(tmp_path: Path, table: SemanticIdTable) -> None:
    """Its figures are the table's; the licence is left to its owner."""
    card = (table.save_pretrained(tmp_path / "saved", name="me/shop") / "README.md").read_text()
    assert 'SemanticIdTable.from_pretrained("me/shop")' in card
    assert f"| digest | `{table.digest}` |" in card
    assert f"{table.quality['relative_mse']:.4g}" in card
    assert "\nlicense:" not in card
    bare = SemanticIdTable.from_mapping({1: [0, 1], 2: [1, 0]}).save_pretrained(tmp_path / "bare")
    card = (bare / "README.md").read_text()
    assert "Nobody measured" in card
    assert "encode" not in card


def test_without_the_extra_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(TableError, match=r'pip install "semid_dataset\[hub\]"'):
        SemanticIdTable.from_pretrained("me/shop")
