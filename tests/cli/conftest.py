"""A folder with one small run, which the tests of several commands read and nobody changes."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from experiment_zoo import TINY

from xtrainer.cli.main import main
from xtrainer.launch.exits import note_end_of_run


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gives a folder with ``tiny.py``, ``runs/tiny``, and what ``xtrainer train`` said of it.

    The best step is 6, the last one 9.
    """
    folder = tmp_path_factory.mktemp("lab")
    (folder / "tiny.py").write_text(TINY, encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    try:
        arguments = ["--config.num_epochs=3", "--config.optimizer.scheduler.lr=0.01"]
        with open("train.txt", "w") as file, contextlib.redirect_stdout(file):
            assert main(["train", "tiny.py", *arguments]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def in_lab(lab: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Gives that folder as the working one."""
    monkeypatch.chdir(lab)
    yield lab
    note_end_of_run(0)  # else the tests end with the code of a run
