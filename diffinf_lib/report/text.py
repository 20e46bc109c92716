"""Text: names of files as they may be shown. Names come from strangers: nothing in them may act or hide."""

import html
import json
import unicodedata
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Kinds of characters that are not seen, turn the direction of writing, or cannot be encoded."""
_SPREADSHEET_FORMULA = "=+-@"


def readable(name: str) -> str:
    """A name in which every character is seen: control and direction characters and stray bytes as `\\u202e`."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _HIDDEN else character
        for character in name
    )


def escaped(name: str) -> str:
    """A name for HTML, as text or within quotes."""
    return html.escape(readable(name), quote=True)


def cell(name: str) -> str:
    """A name for a spreadsheet, where one that begins like a formula would be run: `./=name` is the same file."""
    shown = readable(name)
    return f"./{shown}" if shown.lstrip().startswith(tuple(_SPREADSHEET_FORMULA)) else shown


def script_json(value: Any) -> str:
    """JSON that can stand in a `<script>`: no `<`, `>` or `&` can end or open anything."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 image`, `3 images`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def asset(name: str) -> str:
    """A part of the page that is a file of its own: its style, its script, its guide."""
    return (files("diffinf_lib.report") / "static" / name).read_text(encoding="utf-8")
