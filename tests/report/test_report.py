"""The page about a table: complete, self-contained, honest, and alive in a real browser."""

import base64
import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import world

from semid_dataset import SemanticIdTable
from semid_dataset.errors import EmbeddingError
from semid_dataset.report import report_facts, write_report
from semid_dataset.report._map import duplicates
from semid_dataset.report.page import SAMPLE_ITEMS
from semid_dataset.table.table import build_table_buffers

ITEMS = 300
SECTIONS = ("collisions", "levels", "training", "tree", "map", "groups", "run", "provenance")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> SemanticIdTable:
    """Trained on 300 items, the last of which is the first one's twin."""
    vectors = world.vectors_of(ITEMS)
    vectors[-1] = vectors[0]
    data = tmp_path_factory.mktemp("report")
    world.write_embeddings(data, vectors)
    return world.SmallDataset(data).semantic_id_dict


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Those of the table, in its order."""
    found = world.vectors_of(ITEMS)
    found[-1] = found[0]
    return found


TITLES = {
    world.ITEM0: "Rose & <b>Oak</b> </script> soap",
    str(world.ITEM0 + 1): "玫瑰香皂",
    **{world.ITEM0 + k: f"Lavender soap number {k}" for k in range(2, ITEMS)},
}


def bare_table(codes: Any, *, items: Any = None, info: dict[str, Any] | None = None) -> SemanticIdTable:
    """A table nobody measured."""
    codes = codes if isinstance(codes, np.ndarray) else np.array(codes, np.uint8)
    items = np.arange(len(codes)) if items is None else items
    return SemanticIdTable.from_buffer(b"".join(build_table_buffers(items, codes, info=info or {})))


def data_of(page: str) -> dict[str, Any]:
    """What the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data = json.loads(found.group(1))
    assert isinstance(data, dict)
    return data


def unpack(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def words_of(page: str) -> str:
    """The page's text, without scripts and styles."""
    return re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", page))


class Tags(HTMLParser):
    """Checks that tags close one another, that ids are unique and that anchors lead somewhere."""

    VOID = ("meta", "br", "input", "line", "rect", "circle", "polyline", "img", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.anchors: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name == "href" and (value or "").startswith("#"):
                self.anchors.append((value or "")[1:])
            elif name in {"src", "href", "srcset", "action", "data"}:
                self.addresses.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def check_page(page: str) -> None:
    """Well formed, and nothing in it leads out of it."""
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert len(set(tags.ids)) == len(tags.ids)
    assert set(tags.anchors) <= set(tags.ids)
    assert tags.addresses == []
    assert "default-src 'none'" in page
    assert "url(" not in page.replace("url(#hatch)", "")
    assert "http://" not in page
    assert "https://" not in page


def test_the_page_is_complete_and_needs_nothing_else(
    table: SemanticIdTable, vectors: np.ndarray, tmp_path: Path
) -> None:
    """Every section is there, every figure was measured, no address leads out."""
    path = write_report(table, tmp_path / "new" / "report.html", vectors=vectors, titles=TITLES)
    assert path == tmp_path / "new" / "report.html"
    page = path.read_text(encoding="utf-8")
    check_page(page)
    for anchor in SECTIONS:
        assert f'<section id="{anchor}">' in page
    assert "not measured" not in page
    words = words_of(page)
    quality = table.quality
    for figure in (f"{ITEMS:,}", f"{quality['relative_mse']:.4g}", table.digest, table.lineage, "1 vector equals"):
        assert figure in words
    assert page.count("<figure>") == table.levels + 3
    assert page.index('id="answer"') < page.index('id="tree"') < page.index("<figure>")


def test_titles_cannot_break_the_page(table: SemanticIdTable, vectors: np.ndarray, tmp_path: Path) -> None:
    """What people call items is text, wherever it stands, in any language, under any spelling of the item."""
    page = write_report(table, tmp_path / "r.html", vectors=vectors, titles=TITLES).read_text(encoding="utf-8")
    assert "<b>Oak" not in page
    assert page.count("</script>") == 2
    data = data_of(page)
    titles = dict(zip(data["keys"], data["titles"], strict=True))
    assert titles[str(world.ITEM0)] == TITLES[world.ITEM0]
    assert titles[str(world.ITEM0 + 1)] == "玫瑰香皂"


def test_what_the_script_gets_is_the_table(table: SemanticIdTable, tmp_path: Path) -> None:
    """Keys, codes and counts of prefixes are those of the table, in the order of their IDs."""
    data = data_of(write_report(table, tmp_path / "r.html").read_text(encoding="utf-8"))
    codes = unpack(data["codes"], "<u2").reshape(-1, table.levels)
    assert {int(key): row for key, row in zip(data["keys"], codes.tolist(), strict=True)} == table.to_dict()
    assert codes.tolist() == sorted(codes.tolist())
    assert data["titles"] is None
    for name, depth in (("first", 1), ("second", 2)):
        prefixes, counts = np.unique(table.codes_array[:, :depth], axis=0, return_counts=True)
        assert unpack(data[name]["codes"], "<u2").reshape(-1, depth).tolist() == prefixes.tolist()
        assert unpack(data[name]["counts"], "<u4").tolist() == counts.tolist()
    assert len(unpack(data["map"]["places"], "<u2")) == 2 * ITEMS


def test_what_was_not_measured_is_called_so(tmp_path: Path) -> None:
    """A hand-made table has IDs and nothing else; what can be counted from them is counted."""
    table = bare_table([[1, 2], [1, 2], [3, 4], [1, 5]])
    page = write_report(table, tmp_path / "r.html").read_text(encoding="utf-8")
    check_page(page)
    words = words_of(page)
    assert "50 %" in words  # two of four share their ID
    assert re.search(r"Shared IDs before uniqueness\s+not measured", words)
    assert "1-2" in words
    for name in ("Coverage", "Relative error", "Made in", "Training curve", "Neighbour fidelity"):
        assert re.search(rf"{name}\s+not measured", words), name
    assert re.search(r"Born\s+not recorded", words)
    assert data_of(page)["map"] is None


def test_a_table_of_defaults_says_that_it_is_empty(tmp_path: Path) -> None:
    """No section breaks on nothing."""
    table = SemanticIdTable.default(4, "no <embeddings>")
    page = write_report(table, tmp_path / "r.html", titles={1: "one"}, candidates=[]).read_text(encoding="utf-8")
    check_page(page)
    assert "holds no item" in page
    assert "no &lt;embeddings&gt;" in page


def test_nonsense_in_a_file_is_not_shown_as_a_figure(tmp_path: Path) -> None:
    """Kinds are looked over where a header is read; what figures and stages say is their writer's."""
    info = {
        "quality": {"usage": "x", "relative_mse": "low", "loss": [1, None], "neighbour_fidelity": []},
        "provenance": {"stages": {"reading": "long"}, "born": 1e300, "files": {"<i>": "x"}, "host": "<i>"},
        "settings": {"seed": "<i>"},
        "history": [{"generation": 0, "healed": "<i>"}],
    }
    page = write_report(bare_table([[1, 2], [3, 4], [5, 6]], info=info), tmp_path / "r.html").read_text("utf-8")
    check_page(page)
    assert "low" not in words_of(page).split()
    assert "<i>" not in page.replace('aria-hidden="true"><i', "")


@pytest.mark.parametrize(
    "codes",
    [
        np.zeros((1, 1), np.uint8),
        np.arange(40, dtype=np.uint16).reshape(20, 2) * 1000,
        np.full((30, 8), 7, np.uint8),
    ],
)
def test_every_shape_of_ids_makes_a_page(codes: np.ndarray, tmp_path: Path) -> None:
    """One level or eight, one item, large codes, one ID for all."""
    page = write_report(bare_table(codes, items=[f"a/{k}" for k in range(len(codes))]), tmp_path / "r.html")
    check_page(page.read_text(encoding="utf-8"))


def test_coverage_is_of_candidates_else_of_titles(table: SemanticIdTable, tmp_path: Path) -> None:
    """Half of the candidates, or two thirds of the items with titles."""
    path = tmp_path / "r.html"
    titles = {world.ITEM0: "a", world.ITEM0 + 1: "b", 5: "c"}
    words = words_of(write_report(table, path, titles=titles).read_text("utf-8"))
    assert "66.67 % of 3 items with titles" in words
    words = words_of(write_report(table, path, titles=titles, candidates=[world.ITEM0, 7]).read_text("utf-8"))
    assert "50 % of 2 candidates" in words


def test_items_added_since_training_are_measured_with_the_others(tmp_path: Path) -> None:
    """What can be counted is counted anew, and raw figures say of how many items they are."""
    info = {"quality": {"items": 2, "collision_rate_raw": 0.5, "usage": [1.0, 1.0]}}
    words = words_of(write_report(bare_table([[0, 1], [2, 3], [4, 4]], info=info), tmp_path / "r.html").read_text())
    assert "Raw figures are of the 2 items at training" in words
    assert "1 is the mean; of the 2 items at training" in words
    assert "the table now has 3" in words
    assert "3/8" in words


def test_vectors_that_do_not_fit_are_refused(table: SemanticIdTable, vectors: np.ndarray, tmp_path: Path) -> None:
    """Nothing is written then."""
    path = tmp_path / "r.html"
    broken = vectors.copy()
    broken[7, 2] = np.nan
    for wrong, told in ((vectors[:-1], "shape"), (vectors[:, :5], "shape"), (vectors[0], "shape"), (broken, "Row 7")):
        with pytest.raises(EmbeddingError, match=told):
            write_report(table, path, vectors=wrong)
    assert not path.exists()


def test_a_quality_without_figures_is_completed_from_vectors(
    table: SemanticIdTable, vectors: np.ndarray, tmp_path: Path
) -> None:
    """A file of an older version, or one that was healed, lacks some."""
    info = {key: value for key, value in table.info.items() if key != "quality"}
    buffers = build_table_buffers(table.keys_array, table.codes_array, info=info, weights=table.weights)
    older = SemanticIdTable.from_buffer(b"".join(buffers))
    words = words_of(write_report(older, tmp_path / "r.html", vectors=vectors).read_text("utf-8"))
    assert f"{table.quality['relative_mse']:.4g}" in words
    assert re.search(r"Training curve\s+not measured", words)


def test_a_curve_that_hardly_falls_can_be_read(tmp_path: Path) -> None:
    """Its scale has as many digits as tell its marks apart, and says that it does not begin at zero."""
    table = bare_table([[1, 2], [3, 4]], info={"quality": {"loss": [0.8055, 0.8027, 0.80004]}})
    page = write_report(table, tmp_path / "r.html").read_text("utf-8")
    figure = page.partition("Training curve: loss")[2].partition("</figure>")[0]
    marks = re.findall(r'class="scale"[^>]*>([^<]+)<', figure)
    assert len(set(marks)) == len(marks) >= 3
    assert max(map(len, marks)) <= 6  # no more fit beside the plot
    assert "0.8000</text>" in figure
    assert "does not begin at 0" in figure


def test_duplicates_are_found_whatever_their_sign_of_zero() -> None:
    """Rows that are equal as numbers are equal."""
    vectors = np.array([[0.0, 1.0], [-0.0, 1.0], [2.0, 1.0], [0.0, 1.0], [2.0, 1.0], [3.0, 3.0]], np.float16)
    assert [group.tolist() for group in duplicates(vectors)] == [[0, 1, 3], [2, 4]]
    assert duplicates(vectors[:0]) == []


def test_a_large_table_is_sampled_and_counted_in_full(tmp_path: Path) -> None:
    """The page stays small, the counts of two levels stay true, and every prefix that fits is sampled."""
    items = 60_000
    codes = np.random.default_rng(0).integers(0, 100, (items, 4)).astype(np.uint8)
    titles = dict.fromkeys(range(items), "很长的标题" * 30)
    path = write_report(bare_table(codes), tmp_path / "r.html", titles=titles)
    assert path.stat().st_size < 3_000_000
    page = path.read_text(encoding="utf-8")
    assert "a sample of 16,384 items" in page
    data = data_of(page)
    assert len(data["keys"]) == SAMPLE_ITEMS
    assert unpack(data["second"]["counts"], "<u4").sum() == items
    sampled = unpack(data["codes"], "<u2").reshape(-1, 4)
    assert len(np.unique(sampled[:, :2], axis=0)) == len(np.unique(codes[:, :2], axis=0))


def test_the_same_table_makes_the_same_page(table: SemanticIdTable, tmp_path: Path) -> None:
    """Nothing in it is drawn by chance; only its date differs."""
    pages = [write_report(table, tmp_path / f"{k}.html").read_text("utf-8").partition("<footer>")[0] for k in range(2)]
    assert pages[0] == pages[1]


# --- in a browser -----------------------------------------------------------------------------

Browse = Callable[..., tuple[str, str]]


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Open a page in headless Chromium, run a script in it, and return the document and the console's lines."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here: that the report works in a browser was NOT tested")

    def run(page: Path, script: str = "", *options: str) -> tuple[str, str]:
        opened = tmp_path / "opened.html"
        ending = f"<script>{script}</script></body>" if script else "</body>"
        opened.write_text(page.read_text("utf-8").replace("</body>", ending), "utf-8")
        command = [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=3000", "--window-size=1280,900", *options, "--dump-dom", opened.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, timeout=50, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
        return done.stdout.decode("utf-8"), "\n".join(lines)

    return run


def test_the_page_works_in_a_browser(
    table: SemanticIdTable, vectors: np.ndarray, tmp_path: Path, browse: Browse
) -> None:
    """The tree opens on click down to items, the sunburst goes in and out, items are found, the map answers."""
    page = write_report(table, tmp_path / "r.html", vectors=vectors, titles=TITLES)
    script = """
      const say = (name, value) => document.documentElement.setAttribute("data-" + name, value);
      const painted = (id) => {
        const canvas = document.getElementById(id);
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        let count = 0;
        for (let k = 3; k < pixels.length; k += 4) count += pixels[k] > 0;
        return count > pixels.length / 4 / 200;
      };
      const at = (id, x, y) => {
        const box = document.getElementById(id).getBoundingClientRect();
        return { clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true };
      };
      const path = () => document.getElementById("path").textContent;
      say("painted", painted("sun") && painted("map-canvas"));
      const row = document.querySelector("#tree-list .open");
      row.click();
      say("opened", row.getAttribute("aria-expanded") + " " + row.closest("li").querySelectorAll("li.item").length);
      for (let depth = 0; depth < 4; depth++) {
        const inner = [...document.querySelectorAll("#tree-list ul .open[aria-expanded=false]")].pop();
        if (inner) inner.click();
      }
      say("items", document.querySelectorAll("#tree-list li.item").length);
      row.click();
      say("closed", row.getAttribute("aria-expanded") + " " + row.closest("li").querySelectorAll("ul").length);
      document.getElementById("sun").dispatchEvent(new MouseEvent("click", at("sun", 0.72, 0.5)));
      say("in", path());
      document.getElementById("sun").dispatchEvent(new MouseEvent("click", at("sun", 0.5, 0.5)));
      say("out", path());
      const find = document.getElementById("find");
      find.value = "玫瑰";
      find.dispatchEvent(new Event("input"));
      say("found", document.getElementById("tree-list").textContent);
      document.querySelector("#tree-list .zoom").click();
      say("went", path());
      find.value = "";
      find.dispatchEvent(new Event("input"));
      document.querySelector("#path button").click();
      let tip = "";
      for (let x = 0.1; x < 0.9 && !/[0-9]-/.test(tip); x += 0.02) {
        document.getElementById("map-canvas").dispatchEvent(new MouseEvent("mousemove", at("map-canvas", x, 0.5)));
        tip = document.getElementById("map-tip").textContent;
      }
      say("tip", tip);
      say("wide", document.documentElement.scrollWidth <= window.innerWidth);
    """
    document, console = browse(page, script)
    assert console == ""
    said = dict(re.findall(r' data-(\w+)="([^"]*)"', document.partition("<head>")[0]))
    assert said["painted"] == "true"
    assert said["wide"] == "true"
    assert re.fullmatch(r"true [1-9]\d*", said["opened"])
    assert int(said["items"]) >= int(said["opened"].split()[1])
    assert said["closed"] == "false 0"
    assert re.match(r"all›\d+", said["in"])
    assert re.match(rf"all{ITEMS} items", said["out"])
    assert "玫瑰香皂" in said["found"]
    assert re.match(r"all›\d+", said["went"])
    assert re.match(r"2000\d+ [\d-]+: .*\d of its 6 nearest share its first code", said["tip"])


TOOLS = """
      const say = (name, value) => document.documentElement.setAttribute("data-" + name, value);
      const $ = (id) => document.getElementById(id);
      const press = (...keys) => keys.forEach((key) =>
        document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true })));
      const type = (text) => { $("find").value = text; $("find").dispatchEvent(new Event("input")); };
      const shown = () => $("item").hidden ? "closed" : $("item-name").textContent;
"""


def said_in(document: str) -> dict[str, str]:
    """What a script of a test said about the page."""
    return dict(re.findall(r' data-(\w+)="([^"]*)"', document.partition("<head>")[0]))


def test_everything_answers_to_the_keyboard(
    table: SemanticIdTable, vectors: np.ndarray, tmp_path: Path, browse: Browse
) -> None:
    """The sunburst, the map, the list, an item and the way back: keys alone, and the focus comes back."""
    page = write_report(table, tmp_path / "r.html", vectors=vectors, titles=TITLES)
    script = (
        TOOLS
        + """
      say("reachable", [$("sun"), $("map-canvas"), $("find")].every((one) => one.tabIndex === 0));
      $("sun").focus();
      press("ArrowRight");
      const first = $("sun-tip").textContent;
      press("ArrowRight");
      say("moved", first !== $("sun-tip").textContent && /^\\d+: /.test($("sun-tip").textContent));
      press("ArrowUp");
      say("outward", /^\\d+-\\d+: /.test($("sun-tip").textContent));
      press("ArrowDown", "Enter");
      say("in", $("path").textContent + " " + location.hash);
      press("Escape");
      say("out", $("path").textContent);
      $("map-canvas").focus();
      press("ArrowRight");
      const here = $("map-tip").textContent;
      press("ArrowRight", "ArrowDown");
      say("walked", here !== $("map-tip").textContent);
      const key = $("map-tip").textContent.split(" ")[0];
      press("+", "+", "0", "Enter");
      say("opened", shown() !== "closed" && location.hash === "#item=" + key && document.activeElement === $("item"));
      say("levels", $("item").querySelector("tbody").children.length);
      say("nearest", $("item").querySelectorAll("table")[1].querySelector("tbody").children.length);
      $("item").querySelectorAll("table")[1].querySelector("button").click();
      say("another", location.hash !== "#item=" + key);
      press("Escape");
      say("closed", shown() + " " + document.activeElement.id);
      document.querySelector("#tree-list .open").click();
      const item = document.querySelector("#tree-list .link");
      item.focus();
      item.click();
      press("Escape");
      say("back", document.activeElement === item);
    """
    )
    document, console = browse(page, script)
    assert console == ""
    said = said_in(document)
    assert re.fullmatch(r"all›\d+\d+ items.* #prefix=\d+", said.pop("in"))
    assert said.pop("out").startswith(f"all{ITEMS} items")
    assert (said.pop("levels"), said.pop("nearest"), said.pop("closed")) == (
        str(table.levels),
        "6",
        "closed map-canvas",
    )
    assert set(said.values()) == {"true"}, said


def test_a_search_by_several_words_lights_up(
    table: SemanticIdTable, vectors: np.ndarray, tmp_path: Path, browse: Browse
) -> None:
    """Every word must be there, as a word begins; the tree counts what was found, and the map shows it."""
    titles = {world.ITEM0 + k: ("red lacquer for women", "red soap", "men's lacquer, red")[k % 3] for k in range(ITEMS)}
    page = write_report(table, tmp_path / "r.html", vectors=vectors, titles=titles)
    script = (
        TOOLS
        + """
      const pixels = (id) => $(id).toDataURL();
      const before = [pixels("sun"), pixels("map-canvas")];
      const found = (text) => { type(text); return parseInt($("found").textContent); };
      say("one", found("red"));
      say("several", found("lacquer RED"));
      say("begins", found("men lacquer"));
      const counts = [...document.querySelectorAll("#tree-list .count")].map((one) => one.textContent);
      say("counted", counts.length > 0 && counts.every((one) => /^[0-9]+[/][0-9]+$/.test(one)));
      say("lit", before[0] !== pixels("sun") && before[1] !== pixels("map-canvas"));
      say("hits", document.querySelectorAll("#tree-list li.hit").length > 0);
      say("id", found(document.querySelector("#tree-list li.hit .id").textContent));
      say("odd", found("(red [soap") + $("found").textContent);
      $("find").focus();
      press("Escape");
      say("cleared", $("find").value === "" && before[0] === pixels("sun") && before[1] === pixels("map-canvas"));
      type("99999-1");
      say("missing", $("found").textContent);
    """
    )
    document, console = browse(page, script)
    assert console == ""
    said = said_in(document)
    assert (said["one"], said["several"], said["begins"], said["id"]) == ("300", "200", "100", "1")
    assert said["odd"] == "NaNNo item has all of these words."
    assert said["missing"] == "No item has all of these words."
    assert {said[name] for name in ("counted", "lit", "hits", "cleared")} == {"true"}


def test_addresses_lead_into_the_page(
    table: SemanticIdTable, vectors: np.ndarray, tmp_path: Path, browse: Browse
) -> None:
    """#item, #prefix and #find, also such that lead nowhere, are not encoded, or hold markup."""
    page = write_report(table, tmp_path / "r.html", vectors=vectors, titles=TITLES)
    code = int(table.codes_array[0, 0])
    script = (
        TOOLS
        + f"""
      const at = (hash) => {{ history.replaceState(null, "", hash); dispatchEvent(new PopStateEvent("popstate")); }};
      at("#item={world.ITEM0}");
      say("item", shown());
      at("#prefix={code}");
      say("prefix", shown() + $("path").textContent);
      at("#find=lavender%20number");
      say("find", $("found").textContent);
      at("#item=<img src=x onerror=alert(1)>%");
      say("none", $("item").textContent + $("item").querySelectorAll("img").length);
      at("#prefix=9999-x-1");
      say("astray", $("path").textContent);
      at("#tree");
      say("closed", shown());
    """
    )
    document, console = browse(page, script)
    assert console == ""
    said = said_in(document)
    assert html.unescape(said["item"]) == TITLES[world.ITEM0]
    assert said["prefix"].startswith(f"closedall›{code}")
    assert said["find"] == f"{ITEMS - 2} items found"
    assert said["none"].endswith("in this table.0")
    assert said["astray"].startswith(f"all{ITEMS} items")
    assert said["closed"] == "closed"


def test_words_of_a_prefix_are_those_of_the_facts(table: SemanticIdTable, tmp_path: Path, browse: Browse) -> None:
    """The script and the facts tell the same words, in the same order."""
    words = ["rose", "soap", "oak", "tea", "steel", "玫瑰香皂", "crème", "o'keeffe's"]
    rng = np.random.default_rng(3)
    titles = {world.ITEM0 + k: " ".join(rng.choice(words, 4)) for k in range(ITEMS)}
    facts = report_facts(table, titles=titles)
    page = write_report(table, tmp_path / "r.html", titles=titles)
    script = (
        TOOLS
        + """
      for (;;) { const more = document.querySelector("#tree-list > li > .more"); if (!more) break; more.click(); }
      say("words", [...document.querySelectorAll("#tree-list > li .open")].map((row) =>
        row.querySelector(".code").textContent + ":" + row.querySelector(".words").textContent).join("|"));
    """
    )
    document, console = browse(page, script)
    assert console == ""
    told = dict(one.split(":", 1) for one in html.unescape(said_in(document)["words"]).split("|"))
    many = [prefix for prefix in facts["prefixes"] if prefix["items"] > 1]
    assert len(many) > 10
    assert {str(prefix["prefix"]): " · ".join(prefix["words"]) for prefix in many} == {
        code: about for code, about in told.items() if code in {str(prefix["prefix"]) for prefix in many}
    }


@pytest.mark.parametrize("width", [390, 1280])
def test_pages_of_poor_tables_work_in_a_browser(width: int, tmp_path: Path, browse: Browse) -> None:
    """An empty one, one without codebooks, a sampled one: no error, and nothing wider than a phone."""
    rng = np.random.default_rng(0)
    large = bare_table(rng.integers(0, 50, (20_000, 3)).astype(np.uint16) * 1300)
    tables = [SemanticIdTable.default(4, "none"), bare_table(np.full((30, 1), 7, np.uint8)), large]
    frames = ""
    for number, table in enumerate(tables):
        write_report(table, tmp_path / f"{number}.html")
        frames += f'<iframe src="{number}.html" style="width:{width}px;height:500px"></iframe>'
    # A window of Chromium is at least 500 pixels wide; frames may be narrower.
    (tmp_path / "frames.html").write_text(f"<html><head></head><body>{frames}</body></html>")
    script = """
      addEventListener("load", () => {
        const wide = [...document.querySelectorAll("iframe")].map((frame) => {
          const inner = frame.contentDocument;
          const rows = inner.querySelectorAll("#tree-list .open");
          rows.forEach((row) => row.click());
          return `${rows.length} ${inner.documentElement.scrollWidth <= inner.documentElement.clientWidth}`;
        });
        document.documentElement.setAttribute("data-wide", wide.join(", "));
      });
    """
    document, console = browse(tmp_path / "frames.html", script, "--allow-file-access-from-files")
    assert console == ""
    assert 'data-wide="0 true, 1 true, 24 true"' in document


def test_the_report_of_real_titles_reads_as_topics(real_data: Path, tmp_path: Path) -> None:
    """12,101 real items with titles: below 2 MB, and items with one prefix speak of one thing."""
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = real_data / "data" / "beauty"
    rows = parquet.read_table(folder / "items.parquet").to_pylist()
    titles = {row["item_id"]: row["title"] for row in rows}
    codes = np.load(folder / "published_sids_mit.npz")
    name = sorted(codes.files)[0]
    path = write_report(bare_table(codes[name].astype(np.uint8)), tmp_path / "r.html", titles=titles)
    assert path.stat().st_size < 2_000_000
    page = path.read_text("utf-8")
    check_page(page.replace("https://", "").replace("http://", "") if "http" in str(titles) else page)
    assert len(data_of(page)["keys"]) == len(titles)


def test_a_curve_near_zero_is_drawn(tmp_path: Path) -> None:
    """Fewer items than codes: k-means ends with errors of 1e-14, whose marks were rounded to one and the same."""
    table = bare_table([[1, 2], [3, 4]], info={"quality": {"loss": [3.4e-21, 1.7e-14, 4.9e-15, 4.7e-15]}})
    assert '<polyline class="curve"' in write_report(table, tmp_path / "r.html").read_text("utf-8")
