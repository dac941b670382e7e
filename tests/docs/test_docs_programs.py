"""Does every program of the documentation run as it stands, and print what is said?"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from docs_pages import ROOT, blocks, page_blocks, page_names
from docs_runner import run_blocks

PAGES = [name for name in page_names() if any(b.language == "python" for b in page_blocks(name))]
LONG = {"migrate/hf_trainer.md", "migrate/lightning.md", "rooms/tuning.md"}
"""Pages whose programs the default run goes without, since those of their neighbours are alike."""
MARKED = [pytest.param(page, marks=pytest.mark.slow) if page in LONG else page for page in PAGES]
LANGUAGES = {"python", "bash", "text", "diff", "yaml", "toml", "json"}


@pytest.fixture(scope="module")
def faults(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Runs the pages that are asked for, all in one process: most of the time goes into imports."""
    tests = [item for item in request.session.items if item.fspath == request.fspath]
    wanted = [item.callspec.params["page"] for item in tests if hasattr(item, "callspec")]
    command = [sys.executable, str(Path(__file__).with_name("docs_runner.py"))]
    work = tmp_path_factory.mktemp("pages")
    result = subprocess.run(
        [*command, str(work), *wanted],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    told = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('["')]
    return dict(told) | {None: result.stderr[-2000:]}


@pytest.mark.parametrize("page", MARKED)
def test_the_programs_of_a_page_run(page: str, faults: dict) -> None:
    assert page in faults, f"The process ended before it came here: {faults[None]}"
    assert not faults[page], faults[page]


def test_blocks_say_what_they_are() -> None:
    strange = [
        f"{name}, line {block.line}: {block.language!r}"
        for name in page_names()
        for block in page_blocks(name)
        if block.language not in LANGUAGES
    ]
    assert strange == []


def test_an_error_is_told_with_its_page_and_line() -> None:
    found = blocks("# A\n\n```python\na = 1\n```\n\n```python\nassert a == 2\n```\n")
    assert 'File "a.md", line 8' in run_blocks(found, "a.md")


def test_what_is_printed_is_compared() -> None:
    page = '```python\nprint(1 + 1)\n```\n\n```text title="Output"\n{}\n```\n'
    assert run_blocks(blocks(page.format("2")), "a.md") == ""
    assert "line 6: it prints\n2" in run_blocks(blocks(page.format("3")), "a.md")


def test_blocks_share_their_names() -> None:
    assert run_blocks(blocks("```python\na = 1\n```\n```python\nassert a\n```\n"), "a.md") == ""
