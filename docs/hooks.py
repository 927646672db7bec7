"""Hooks of the site: links that leave docs/ name the file in the repository instead of leading nowhere."""

import re
from typing import Any

OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\(\.\./([^)#]*)[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page's text with `[text](../path)` as text that names the path."""
    return OUTSIDE.sub(lambda found: f"{found[2]} (`{found[3]}` in the repository)", markdown)
