"""What is written on the pages? Their code blocks, with the lines they begin at."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
OUTPUT = 'title="Output"'
"""What is written behind ``text`` where a block is what the ones before it print."""
_FENCE = re.compile(r"^```(\w+)?([^\n`]*)\n(.*?)^```[ ]*$", re.DOTALL | re.MULTILINE)
_SNIPPET = re.compile(r'^--8<-- "([^"]+)"\n', re.MULTILINE)


class Block(NamedTuple):
    """One fenced block: its language, what stands behind that, its text, its first line."""

    language: str
    rest: str
    text: str
    line: int


def page_names() -> list[str]:
    """Returns the paths of all pages below ``docs``."""
    return sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def expanded(text: str) -> str:
    """Returns a text with its snippets in place."""
    return _SNIPPET.sub(lambda found: (ROOT / found[1]).read_text(encoding="utf-8"), text)


def blocks(text: str) -> list[Block]:
    """Returns the fenced blocks of a page that begin at the left margin."""
    found = []
    for block in _FENCE.finditer(text):
        line = text.count("\n", 0, block.start()) + 2
        found.append(Block(block[1] or "", block[2].strip(), expanded(block[3]), line))
    return found


def page_blocks(name: str) -> list[Block]:
    """Returns the blocks of a page below ``docs``."""
    return blocks((DOCS / name).read_text(encoding="utf-8"))
