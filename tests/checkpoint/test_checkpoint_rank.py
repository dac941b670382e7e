"""A metric that comes after its step was saved."""

import json

import pytest

from xtrainer.checkpoint import CheckpointManager, find_step, list_steps, read_metric
from xtrainer.errors import CheckpointError, CheckpointNotFoundError


def test_a_step_can_be_given_its_metric_later(tmp_path, small):
    with CheckpointManager(tmp_path, max_to_keep=1, monitor_mode="min") as manager:
        for step, metric in ((1, 0.5), (2, 0.1), (3, 0.9)):
            manager.save(step, small)
            manager.rank(step, metric)
        assert manager.best_step() == 2
        assert (manager.all_steps(), manager.metric_of(3)) == ([2, 3], 0.9)
    assert list_steps(tmp_path) == [2, 3]


def test_a_later_metric_survives_a_restart(save_steps, tmp_path):
    save_steps({1: 0.5, 2: None}, max_to_keep=None, monitor_mode="min")
    with CheckpointManager(tmp_path, monitor_mode="min") as manager:
        manager.rank(2, 0.1)
    assert read_metric(tmp_path / "2") == 0.1
    assert find_step(tmp_path, "best").name == "2"
    with CheckpointManager(tmp_path, max_to_keep=1, monitor_mode="min") as manager:
        assert manager.best_step() == 2


def test_the_newest_metric_of_a_step_counts(save_steps, tmp_path):
    save_steps({1: 0.5}, monitor_mode="min")
    with CheckpointManager(tmp_path, monitor_mode="min") as manager:
        manager.rank(1, 0.1)
        manager.rank(1, 0.3)
    assert read_metric(tmp_path / "1") == 0.3


@pytest.mark.parametrize("metric", [float("nan"), float("inf"), float("-inf")])
def test_a_later_metric_that_is_not_finite_is_never_best(save_steps, tmp_path, metric):
    save_steps({1: 0.5, 2: None}, max_to_keep=None, monitor_mode="min")
    with CheckpointManager(tmp_path, max_to_keep=1, monitor_mode="min") as manager:
        manager.rank(2, metric)
        assert manager.best_step() == 1
    assert list_steps(tmp_path) == [1, 2]


def test_a_later_metric_of_the_other_mode_does_not_rank(save_steps, tmp_path):
    save_steps({1: None}, monitor_mode="max")
    with CheckpointManager(tmp_path, monitor_mode="max") as manager:
        manager.rank(1, 0.5)
    assert read_metric(tmp_path / "1", "max") == 0.5
    assert read_metric(tmp_path / "1", "min") is None


def test_ranking_a_step_that_is_not_there_is_an_error(save_steps, tmp_path):
    save_steps({1: 0.5}, monitor_mode="min")
    with CheckpointManager(tmp_path, monitor_mode="min") as manager:
        with pytest.raises(CheckpointNotFoundError, match="found no step 2"):
            manager.rank(2, 0.1)


def test_a_damaged_later_metric_is_an_error_that_names_the_file(save_steps, tmp_path):
    save_steps({1: 0.5}, monitor_mode="min")
    (tmp_path / "1" / "rank.json").write_text("{")
    with pytest.raises(CheckpointError, match="rank.json cannot be read"):
        read_metric(tmp_path / "1")


def test_a_later_metric_is_json_and_leaves_no_other_file(save_steps, tmp_path):
    save_steps({1: None}, monitor_mode="min")
    before = {path.name for path in (tmp_path / "1").iterdir()}
    with CheckpointManager(tmp_path, monitor_mode="min") as manager:
        manager.rank(1, 0.25)
    assert {path.name for path in (tmp_path / "1").iterdir()} - before == {"rank.json"}
    record = json.loads((tmp_path / "1" / "rank.json").read_text())
    assert record == {"metric": 0.25, "monitor_mode": "min"}
