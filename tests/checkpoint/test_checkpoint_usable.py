"""Which checkpoint is chosen where some are damaged."""

import shutil
from pathlib import Path

import pytest

from xtrainer.checkpoint import CheckpointManager, choose_usable, list_steps, set_aside
from xtrainer.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    NoUsableCheckpointError,
)


@pytest.fixture
def steps(save_steps) -> Path:
    """Gives a folder with the steps 1 to 4, of which 2 is the best and 3 the next."""
    return save_steps({1: 0.4, 2: 0.1, 3: 0.2, 4: 0.3}, monitor_mode="min")


def damage(folder: Path, *steps: int) -> None:
    """Changes one bit of the arrays of some steps."""
    for step in steps:
        path = next(iter(sorted((folder / str(step) / "state" / "d").iterdir())))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)


def test_the_newest_and_the_best_are_chosen(steps):
    assert choose_usable(steps).folder.name == "4"
    assert choose_usable(steps, "best").folder.name == "2"
    assert choose_usable(steps, 3).folder.name == "3"
    assert choose_usable(steps / "1", "best").folder.name == "1"


def test_damaged_ones_are_passed_over_and_told(steps):
    damage(steps, 2, 3, 4)
    choice = choose_usable(steps)
    assert choice.folder.name == "1"
    assert [path.name for path in choice.damaged] == ["4", "3", "2"]
    assert all("is damaged" in problems[0] for problems in choice.damaged.values())
    choice = choose_usable(steps, "best")
    assert (choice.folder.name, [path.name for path in choice.damaged]) == ("1", ["2", "3", "4"])


def test_the_step_that_was_asked_for_is_never_another_one(steps):
    damage(steps, 3)
    for folder, which in ((steps, 3), (steps / "3", "latest")):
        with pytest.raises(CheckpointCorruptError, match="found a damaged checkpoint") as caught:
            choose_usable(folder, which)
        assert caught.value.step == 3


def test_where_all_are_damaged_nothing_is_chosen_and_nothing_changes(steps, kit):
    damage(steps, 1, 2, 3, 4)
    before = kit.tree_of(steps)
    with pytest.raises(NoUsableCheckpointError, match="4 checkpoints and none that is usable"):
        choose_usable(steps)
    assert kit.tree_of(steps) == before


def test_steps_may_be_left_out(steps):
    assert choose_usable(steps, "latest", skip={4, 3}).folder.name == "2"


def test_an_empty_folder_has_none(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointNotFoundError):
            choose_usable(folder)


def test_without_a_metric_there_is_no_best(save_steps):
    folder = save_steps({1: None, 2: float("nan")}, monitor_mode="min")
    with pytest.raises(CheckpointNotFoundError, match="no step with a finite monitored metric"):
        choose_usable(folder, "best")


def test_what_is_no_step_is_passed_over(steps):
    (steps / "9").mkdir()
    (steps / "8").symlink_to(steps / "1")
    (steps / "7").write_text("a file")
    shutil.copytree(steps / "1", steps / "005")
    shutil.copytree(steps / "1", steps / "-6")
    choice = choose_usable(steps)
    assert (choice.folder.name, choice.damaged) == ("4", {})


def test_a_copy_that_stopped_half_way_is_damaged_even_with_its_record(steps):
    shutil.rmtree(steps / "4" / "state" / "d")
    choice = choose_usable(steps)
    assert choice.folder.name == "3"
    assert "is missing" in choice.damaged[steps / "4"][0]


def test_what_is_set_aside_is_kept_under_another_name(steps, small, caplog):
    for _ in range(2):
        damage(steps, 4)
        set_aside(steps / "4", ["meta.json is damaged"])
        assert list_steps(steps) == [1, 2, 3]
        with CheckpointManager(steps, monitor_mode="min") as manager:
            manager.save(4, small)
    names = {path.name for path in steps.iterdir()}
    assert names == {"1", "2", "3", "4", "corrupt-4", "corrupt-4-2", "RUN.json"}
    assert "was set aside: meta.json is damaged" in caplog.text


def test_superseded_steps_stay_until_the_new_course_has_passed_them(steps, small):
    with CheckpointManager(steps, monitor_mode="min") as manager:
        assert manager.supersede_after(2) == [3, 4]
        assert manager.all_steps() == list_steps(steps) == [1, 2]
        manager.save(3, small)
        manager.wait()
    assert (steps / "superseded-4").is_dir() and not (steps / "superseded-3").exists()
    with CheckpointManager(steps, monitor_mode="min") as manager:
        manager.save(5, small)
    assert not (steps / "superseded-4").exists()
    assert list_steps(steps) == [1, 2, 3, 5]
