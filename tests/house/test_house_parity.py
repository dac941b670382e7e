"""Does every feature of the other trainers have a test that runs, and is the rest told as open?"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
LAST = {"X": 27, "L": 26, "S": 7, "H": 19}
"""The number of the last feature of each system."""
ROWS = [f"{letter}{number}" for letter, last in LAST.items() for number in range(1, last + 1)]
OPEN: set[str] = set()
"""What is not shown yet; a row that is leaves this set and gets its tests in the table."""
LEFT_OUT = {"slow", "chaos", "gpu", "skip"}
"""Marks of tests that the default run does not have."""


class Row(NamedTuple):
    """One feature."""

    name: str
    feature: str
    here: str
    where: str
    tests: str


def rows_of(text: str) -> list[Row]:
    """Returns the rows of all tables with a number in their first column."""
    lines = [line for line in text.splitlines() if re.match(r"\| [A-Z]\d+ \|", line)]
    return [Row(*(cell.strip() for cell in line.strip("|").split("|"))) for line in lines]


def named(cell: str) -> list[str]:
    """Returns what a cell has in backquotes."""
    return re.findall(r"`([^`]+)`", cell)


def marks_in(node: ast.AST, known: dict[str, ast.expr]) -> Iterator[str]:
    """Yields the marks that an expression makes; those of single parameters are not counted."""
    if isinstance(node, ast.Name) and node.id in known:
        yield from marks_in(known[node.id], known)
    elif isinstance(node, ast.List | ast.Tuple):
        for element in node.elts:
            yield from marks_in(element, known)
    elif found := re.match(r"pytest\.mark\.(\w+)", ast.unparse(node)):
        yield found[1]


def defined(source: str) -> dict[str, set[str]]:
    """Returns the tests of a file with their marks; a test of a class is ``Class::test``."""
    tree = ast.parse(source)
    known = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found: dict[str, set[str]] = {}

    def look(body: list[ast.stmt], prefix: str, outer: set[str]) -> None:
        own = set(outer)
        for node in body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
                own |= set(marks_in(node.value, known))
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                marks = own.union(*(marks_in(one, known) for one in node.decorator_list))
                if isinstance(node, ast.ClassDef):
                    look(node.body, f"{prefix}{node.name}::", marks)
                elif node.name.startswith("test_"):
                    found[f"{prefix}{node.name}"] = marks

    look(tree.body, "", set())
    return found


def faults_of(name: str, tests: list[str], root: Path = ROOT) -> list[str]:
    """Returns a sentence for each test that is not there, and for a row that no run shows."""
    faults, shown = [], False
    for test in tests:
        path, _, function = test.partition("::")
        file = root / path
        marks = defined(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if function not in marks:
            faults.append(f"{name}: {test} is not there")
        else:
            shown |= not marks[function] & LEFT_OUT
    return faults if shown or faults else [f"{name}: the default run has none of its tests"]


FOUND = rows_of(TABLE)
DONE = [row for row in FOUND if row.tests != "-"]


def test_every_feature_has_its_row_in_order() -> None:
    assert [row.name for row in FOUND] == ROWS
    assert all(row.feature and named(row.here) or row.here == "core" for row in FOUND)


def test_what_is_open_is_told() -> None:
    assert {row.name for row in FOUND if row.tests == "-"} == OPEN
    assert all(row.where == "-" for row in FOUND if row.name in OPEN)


@pytest.mark.parametrize("row", DONE, ids=lambda row: row.name)
def test_every_other_feature_has_a_file_and_tests_that_run(row: Row) -> None:
    tests = named(row.tests)
    assert "<br>".join(f"`{test}`" for test in tests) == row.tests
    assert faults_of(row.name, tests) == []
    (where,) = named(row.where)
    assert (ROOT / where).is_file()


PLANTED = """
import pytest
rare = [pytest.mark.processes, pytest.mark.slow]

def test_a(): ...

@pytest.mark.chaos
def test_b(): ...

@pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_c(x): ...

class TestD:
    pytestmark = rare

    def test_e(self): ...

    def helper(self): ...
"""


@pytest.mark.parametrize(
    ("tests", "faults"),
    [
        (["test_a"], []),
        (["test_c"], []),
        (["test_b", "TestD::test_e", "test_a"], []),
        (["test_b", "TestD::test_e"], ["L1: the default run has none of its tests"]),
        ([], ["L1: the default run has none of its tests"]),
        (["test_a", "test_z"], ["L1: tests/one.py::test_z is not there"]),
        (["test_e"], ["L1: tests/one.py::test_e is not there"]),
        (["TestD::helper"], ["L1: tests/one.py::TestD::helper is not there"]),
    ],
)
def test_a_test_that_is_missing_or_never_runs_is_found(
    tests: list[str], faults: list[str], tmp_path: Path
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "one.py").write_text(PLANTED, encoding="utf-8")
    assert faults_of("L1", [f"tests/one.py::{test}" for test in tests], tmp_path) == faults


def test_a_file_that_is_missing_is_found(tmp_path: Path) -> None:
    missing = "tests/other.py::test_a"
    assert faults_of("L1", [missing], tmp_path) == [f"L1: {missing} is not there"]
