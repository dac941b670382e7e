"""Does a wheel hold the whole package and nothing else?"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CARRIED = ["pyproject.toml", "README.md", "LICENSE", "xtrainer", "tests", "experiments"]


def wheel_faults(names: list[str], sources: list[str]) -> list[str]:
    """Returns a sentence for each file that is missing from a wheel or should not be in it."""
    missing = [f"{name} is missing" for name in sources if name not in names]
    strange = [
        f"{name} should not be there"
        for name in names
        if name not in sources and ".dist-info/" not in name
    ]
    return missing + strange


def expected_sources() -> list[str]:
    found = [path.relative_to(ROOT).as_posix() for path in (ROOT / "xtrainer").rglob("*.py")]
    return [*found, "xtrainer/py.typed"]


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    # The build writes beside its sources, so it is given a copy.
    tree = tmp_path_factory.mktemp("tree")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "runs")
    for name in CARRIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=ignored)
        else:
            shutil.copy(source, tree / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "out"]
    result = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = (tree / "out").glob("xtrainer-*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_the_wheel_holds_every_source_and_nothing_else(wheel_names: list[str]) -> None:
    assert wheel_faults(wheel_names, expected_sources()) == []


def test_the_wheel_holds_the_license(wheel_names: list[str]) -> None:
    assert any(name.endswith("LICENSE") for name in wheel_names)


def test_every_folder_of_sources_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "xtrainer").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_a_missing_room_and_a_stray_file_are_found() -> None:
    sources = ["xtrainer/__init__.py", "xtrainer/step/__init__.py", "xtrainer/py.typed"]
    names = ["xtrainer/__init__.py", "tests/test_tree.py", "xtrainer-0.1.dist-info/RECORD"]
    assert wheel_faults(names, sources) == [
        "xtrainer/step/__init__.py is missing",
        "xtrainer/py.typed is missing",
        "tests/test_tree.py should not be there",
    ]
