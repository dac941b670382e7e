"""Does every fault have its tests, and does every test that is named exist?"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
LAST = {"A": 16, "B": 12, "C": 11, "D": 13, "E": 14, "F": 8, "G": 9, "H": 9, "I": 5, "J": 9}
"""The number of the last row of each kind of fault."""
ROWS = [f"{letter}{number}" for letter, last in LAST.items() for number in range(1, last + 1)]
OPEN: set[str] = set()

TARGETS = 16
BENCHMARKED = {"T10", "T11"}
"""Targets that depend on the machine."""

tested, _, left = TABLE.partition("\n## Open")
FOUND = {
    found[1]: re.findall(r"`(tests/[^`]+)`", line)
    for line in tested.splitlines()
    if (found := re.match(r"\| ([A-J]\d+) \|", line))
}

FOUND |= {
    found[1]: re.findall(r"`(tests/[^`]+)`", line)
    for line in left.splitlines()
    if (found := re.match(r"\| (T\d+) \|", line))
}


def test_every_target_is_shown() -> None:
    targets = {row: names for row, names in FOUND.items() if row.startswith("T")}
    assert list(targets) == [f"T{number}" for number in range(1, TARGETS + 1)]
    assert {row for row, names in targets.items() if not names} == BENCHMARKED | {"T3"}


def test_every_row_has_a_test_or_a_reason() -> None:
    assert set(re.findall(r"^\| ([A-J]\d+) \|", left, re.MULTILINE)) == OPEN
    faults = {row: names for row, names in FOUND.items() if not row.startswith("T")}
    assert sorted([*faults, *OPEN]) == sorted(ROWS)
    assert all(faults.values())


@pytest.mark.parametrize("row", FOUND)
def test_every_test_that_is_named_exists(row: str) -> None:
    for name in FOUND[row]:
        path, _, test = name.partition("::")
        text = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^def {test}\(", text, re.MULTILINE), name


def test_every_row_says_how_the_program_ends() -> None:
    codes = re.findall(r"^\| [A-J]\d+ \| [^|]+ \| ([^|]+) \|", tested, re.MULTILINE)
    assert len(codes) == len(ROWS) - len(OPEN)
    allowed = {"0", "1", "3", "4", "5", "124", "130", "143", "-9", "not 0", "-"}
    assert {part for code in codes for part in re.split(r"; |, then ", code.strip())} <= allowed
