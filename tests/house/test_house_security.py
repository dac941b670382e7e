"""Does SECURITY.md name tests that there are, and is each of its promises shown by one?"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_every_test_that_is_named_is_there() -> None:
    named = set(re.findall(r"`(tests/[^`]+)`", TEXT))
    assert len(named) >= 8
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []


def test_every_promise_names_its_test() -> None:
    promises = TEXT.split("## What is promised")[1].split("## What is not promised")[0]
    paragraphs = promises.split("\n\n**")[1:]
    assert len(paragraphs) == 6
    assert [text[:40] for text in paragraphs if "`tests/" not in text] == []
