"""Hooks of the site: links that leave docs/ name the file in the repository, and plots of benchmarks come along."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\(\.\./([^)#]*)[^)]*\)")
RESULTS = "benchmarks/results"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the plots of the benchmarks, which lie beside their figures, as images/<name>."""
    for plot in (Path(config.docs_dir).parent / RESULTS).glob("*.svg"):
        files.append(File.generated(config, f"images/{plot.name}", abs_src_path=str(plot)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page's text with `[text](../path)` as text that names the path, and plots where they now lie."""
    markdown = re.sub(rf"(!\[[^\]]*\])\(\.\./{RESULTS}/([^)/]+\.svg)\)", r"\1(images/\2)", markdown)
    return OUTSIDE.sub(lambda found: f"{found[2]} (`{found[3]}` in the repository)", markdown)
