"""Which checkpoint has come furthest, in a run or among several."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

import xtrainer as xt
from xtrainer.checkpoint import CheckpointManager, find_last_checkpoint
from xtrainer.errors import CheckpointError, NoUsableCheckpointError

Save = Callable[[str, dict[int, int]], Path]


@pytest.fixture
def save(tmp_path: Path, kit: Any) -> Save:
    """Writes steps with their finished epochs into a folder of the test's."""

    def write(name: str, epochs: dict[int, int]) -> Path:
        with CheckpointManager(tmp_path / name, max_to_keep=None) as manager:
            for step, done in epochs.items():
                progress = {"step": step, "epochs_done": done}
                manager.save(step, kit.items({"w": jnp.arange(8.0)}, progress=progress))
        return tmp_path / name

    return write


def damage(step_folder: Path) -> None:
    """Changes one bit of the arrays of a step."""
    path = min((step_folder / "state" / "d").iterdir())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_the_newest_step_of_a_run_is_found_by_any_of_its_folders(
    save: Save, tmp_path: Path
) -> None:
    steps = save("run/checkpoints", {2: 0, 9: 1, 10: 1})
    for root in (tmp_path / "run", steps, steps / "10", str(steps)):
        assert xt.find_last_checkpoint(root) == steps / "10"
    assert find_last_checkpoint(steps / "2") == steps / "2"


def test_of_several_runs_that_is_taken_which_has_come_furthest(save: Save, tmp_path: Path) -> None:
    save("runs/a/checkpoints", {50: 1})
    b = save("runs/b", {20: 2, 30: 3})  # more epochs count more than more steps
    assert find_last_checkpoint(tmp_path / "runs") == b / "30"
    c = save("runs/c/checkpoints", {31: 3})
    assert find_last_checkpoint(tmp_path / "runs") == c / "31"


def test_damaged_ones_are_passed_over_with_a_warning(
    save: Save, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = save("runs/a", {1: 0, 2: 1}), save("runs/b", {3: 1, 4: 2})
    damage(b / "4")
    (b / "3" / "meta.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert find_last_checkpoint(tmp_path / "runs") == a / "2"
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and all("is damaged and was passed over" in text for text in told)


def test_nothing_is_said_of_damaged_ones_that_come_after_it(
    save: Save, caplog: pytest.LogCaptureFixture
) -> None:
    steps = save("a", {1: 0, 2: 1})
    damage(steps / "1")
    with caplog.at_level(logging.WARNING):
        assert find_last_checkpoint(steps) == steps / "2"
    assert caplog.records == []


def test_where_all_are_damaged_that_is_an_error_and_nothing_changes(
    save: Save, tmp_path: Path, kit: Any
) -> None:
    damage(save("runs/a", {1: 0}) / "1")
    damage(save("runs/b", {2: 0}) / "2")
    before = kit.tree_of(tmp_path)
    with pytest.raises(NoUsableCheckpointError, match="2 checkpoints and none that is usable"):
        find_last_checkpoint(tmp_path / "runs")
    assert kit.tree_of(tmp_path) == before


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "runs" / "a" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "notes.txt").write_text("no run")
    for root in (None, tmp_path / "runs", tmp_path / "nowhere", tmp_path / "runs" / "notes.txt"):
        assert find_last_checkpoint(root) is None


def test_a_link_among_the_runs_is_not_followed(save: Save, tmp_path: Path) -> None:
    outside = save("outside", {9: 9})
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "checkpoints").symlink_to(outside)
    b = save("runs/b", {1: 0})
    assert find_last_checkpoint(tmp_path / "runs") == b / "1"


def test_checkpoints_of_an_older_format_are_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "runs" / "a" / "5" / "meta").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "5" / "meta" / "metadata").write_text("{}")
    with pytest.raises(CheckpointError, match="found a checkpoint of format 1"):
        find_last_checkpoint(tmp_path / "runs")
