"""Are the messages of the troubleshooting page those of the source?"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
GAP = "\N{HORIZONTAL ELLIPSIS}"
"""What stands for the part of a message that differs, on the page and here."""


def texts_of(source: str) -> list[str]:
    """Returns the texts of a file, with a gap for each value that is put in."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [str(p.value) if isinstance(p, ast.Constant) else GAP for p in node.values]
            found.append("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(re.sub(r"%[.\d]*[sdrfg]", GAP, node.value).replace("%%", "%"))
    return found


TEXTS = [t for p in (ROOT / "xtrainer").rglob("*.py") for t in texts_of(p.read_text("utf-8"))]
TOLD = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)
MESSAGES = [text for text in TOLD if " " in text]


def is_said(message: str, texts: list[str]) -> bool:
    """Says whether the parts of a message stand in one of the texts, in their order."""
    pattern = ".*".join(re.escape(part.strip()) for part in message.split(GAP))
    return any(re.search(pattern, text, re.DOTALL) for text in texts)


def test_there_are_messages_for_each_kind() -> None:
    assert len(MESSAGES) >= 40


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_one_of_the_source(message: str) -> None:
    assert is_said(message, TEXTS)


def test_a_message_that_nothing_says_is_found() -> None:
    texts = texts_of('f"found {x}, expected {y} rows"')
    assert is_said(f"found {GAP}, expected {GAP} rows", texts)
    assert not is_said(f"expected {GAP} columns", texts)
    assert not is_said("rows, expected", texts)
