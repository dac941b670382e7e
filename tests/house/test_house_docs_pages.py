"""Is the documentation complete, and true in what it names?"""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_house_parity import faults_of, named

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
INCLUDED = {"changelog.md", "parity.md", "security.md"}
"""Pages that are written for another place as well."""
ROOMS = sorted(path.parent.name for path in (ROOT / "xtrainer").glob("*/__init__.py"))
REFERENCE = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| \[`xt\.(\w+)`\]\[(xtrainer[\w.]+)\] \| (.+) \|$", re.MULTILINE)


def first_line(name: str) -> str:
    """Returns the first paragraph of a public name's docstring, up to its first full stop."""
    door = importlib.import_module("xtrainer")
    text = re.split(r"\n\s*\n", getattr(door, name).__doc__.strip())[0]
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join(text.split())).replace("``", "`")
    return re.split(r"(?<=\.) ", text)[0].rstrip(":")


def test_every_room_has_a_page_with_the_names_behind_its_door() -> None:
    for room in ROOMS:
        text = (DOCS / "rooms" / f"{room}.md").read_text(encoding="utf-8")
        assert re.search(rf"^::: xtrainer\.{room}$", text, re.MULTILINE), room
        assert f"[`{room}`]({room}.md)" in (DOCS / "rooms" / "index.md").read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_every_page_says_at_its_top_which_question_it_answers(page: Path) -> None:
    if page.name not in INCLUDED:
        title, first = page.read_text(encoding="utf-8").split("\n\n", 2)[:2]
        assert title.startswith("# ")
        assert "?" in first or page.parent.name in ("reference", "rooms") and page.stem == "index"


def test_the_reference_has_every_public_name_with_what_its_docstring_says() -> None:
    door = importlib.import_module("xtrainer")
    rows = {name: (home, text) for name, home, text in ROW.findall(REFERENCE)}
    assert sorted(rows) == sorted(door.__all__)
    assert {name: text for name, (_, text) in rows.items()} == {n: first_line(n) for n in rows}


def test_the_homes_in_the_reference_are_the_names() -> None:
    door = importlib.import_module("xtrainer")
    for name, home, _ in ROW.findall(REFERENCE):
        module, _, attribute = home.rpartition(".")
        assert getattr(importlib.import_module(module), attribute) is getattr(door, name)


def test_every_guarantee_has_tests_that_run() -> None:
    text = (DOCS / "guarantees.md").read_text(encoding="utf-8")
    sections = re.split(r"^### ", text.split("\n## Check")[0], flags=re.MULTILINE)[1:]
    assert len(sections) == text.count("| ● |\n") + text.count("| ◐ |\n")
    for section in sections:
        tests = [test for test in named(section) if "::" in test]
        assert faults_of(section.splitlines()[0], tests) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_tests_and_files_that_a_page_names_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    paths = {test.partition("::")[0] for test in named(text)}
    paths = {
        p for p in paths if re.fullmatch(r"(xtrainer|tests|experiments|benchmarks|docs)/\S+", p)
    }
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_every_error_is_explained() -> None:
    text = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    tree = ast.parse((ROOT / "xtrainer" / "errors.py").read_text(encoding="utf-8"))
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert classes == set(re.findall(r"^\| `(\w+Error)` \|", text, re.MULTILINE))


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # the theme's own announcement
    result = subprocess.run(
        command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "WARNING" not in result.stderr
    page = (tmp_path / "rooms" / "callbacks.html").read_text(encoding="utf-8")
    assert 'id="xtrainer.callbacks.EarlyStoppingConfig.patience"' in page
    assert ":class:" not in page
    fetched = re.findall(r'<(?:link|script|img)[^>]+(?:href|src)="(https?:[^"]+)"', page)
    assert [address for address in fetched if "canonical" not in address] == []


def rewrite_reference() -> None:
    """Writes the texts of the reference's rows anew."""
    path = DOCS / "reference" / "index.md"
    path.write_text(
        ROW.sub(lambda row: f"| [`xt.{row[1]}`][{row[2]}] | {first_line(row[1])} |", REFERENCE),
        encoding="utf-8",
    )


if __name__ == "__main__":  # python tests/house/test_house_docs_pages.py
    rewrite_reference()
