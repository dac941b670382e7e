"""Does the README say what is true, briefly, and does its code run?"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    "pip install -e . && python experiments/byte_lm.py",
    'pip install -e ".[test]" && python -m pytest',
]


def blocks(text: str, language: str) -> list[str]:
    """Returns the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def table_rooms(text: str) -> set[str]:
    """Returns the rooms of the first column of the README's tables."""
    return set(re.findall(r"^\| `(\w+)/?` \|", text, flags=re.MULTILINE))


def test_the_readme_is_short() -> None:
    assert len(TEXT.splitlines()) <= 120


def test_the_readme_gives_exactly_the_two_commands() -> None:
    lines = [line for block in blocks(TEXT, "(?:bash|sh|shell)") for line in block.splitlines()]
    assert [line for line in lines if line.startswith("pip install -e")] == COMMANDS


def test_the_program_is_short() -> None:
    programs = blocks(TEXT, "python")
    assert programs
    assert max(len(program.splitlines()) for program in programs) <= 25


def test_the_table_shows_every_room() -> None:
    rooms = {path.parent.name for path in (ROOT / "xtrainer").glob("*/__init__.py")}
    assert table_rooms(TEXT) == rooms


def test_files_the_readme_names_exist() -> None:
    named = re.findall(r"`((?:xtrainer|experiments|tests|docs)/[\w/.]+\.\w+)`", TEXT)
    assert len(named) >= 5
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("number", range(len(blocks(TEXT, "python"))))
def test_the_code_runs_as_it_stands(number: int, tmp_path: Path) -> None:
    script = tmp_path / "readme.py"
    script.write_text(blocks(TEXT, "python")[number], encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, script.name],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert result.returncode == 0, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["readme.py"]


def test_blocks_are_found_by_language() -> None:
    text = "a\n```python\nx = 1\n\ny = 2\n```\n```bash\nls\n```\n```python\nz\n```\n"
    assert blocks(text, "python") == ["x = 1\n\ny = 2\n", "z\n"]
    assert blocks(text, "bash") == ["ls\n"]
