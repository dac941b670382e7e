"""What is remembered of a run's rows, without a run."""

import json
from typing import Any

import pytest

from xtrainer.errors import CheckpointError, MetricError
from xtrainer.metrics import History, Row
from xtrainer.metrics import history as module


def filled(*steps: int, mode: str = "val", files: Any = None) -> History:
    history = History(files)
    for step in steps:
        history.add(mode, step, 1, {"loss": float(step)})
    return history


def steps_of(history: History, mode: str) -> list[int]:
    return [row.step for row in history.get(mode, [])]


def saved(history: History) -> Any:
    return json.loads(json.dumps(history.to_json(), allow_nan=False))


def test_sets_are_those_with_rows_in_the_order_of_a_run() -> None:
    history = filled(4, mode="test")
    history.add("val", 2, 1, {"loss": 1.0})
    history.add("val", 4, 2, {"loss": 0.5, "accuracy": 1.0})
    assert list(history) == ["val", "test"] and len(history) == 2
    assert history["val"] == [Row(2, 1, {"loss": 1.0}), Row(4, 2, {"loss": 0.5, "accuracy": 1.0})]
    assert history.series("val", "accuracy") == {4: 1.0}
    assert history.series("train", "loss") == {}
    assert history.newest("val") == history["val"][-1] and history.newest("train") is None
    assert "train" not in history
    with pytest.raises(KeyError, match="train"):
        history["train"]


def test_a_metric_that_no_row_of_a_set_has_is_an_error() -> None:
    history = filled(1, mode="train_epoch")
    with pytest.raises(MetricError, match="'train_epoch' has .* 'loss_mean'. Did you mean 'loss'?"):
        history.series("train_epoch", "loss_mean")


def test_a_row_of_the_same_step_takes_the_place_of_the_one_before() -> None:
    history = filled(3, 3)
    history.add("val", 3, 1, {"loss": 9.0})
    assert history["val"] == [Row(3, 1, {"loss": 9.0})]


def test_rows_are_copied() -> None:
    history, metrics = History(), {"loss": 1.0}
    history.add("val", 1, 1, metrics)
    metrics["loss"] = 2.0
    assert history.series("val", "loss") == {1: 1.0}


def test_the_newest_rows_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 3)
    assert steps_of(filled(1, 2, 3, 4, 5), "val") == [3, 4, 5]


def test_wide_rows_are_kept_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NUMBERS", 10)
    history = filled(1, 2, 3)
    for step in (4, 5, 6):
        history.add("val", step, 1, {f"norm_{index}": 1.0 for index in range(4)})
    assert steps_of(history, "val") == [5, 6]


def test_what_was_saved_comes_back_also_what_is_not_finite() -> None:
    history = filled(2, 4)
    history.add("val", 6, 2, {"loss": float("inf"), "worst": float("-inf")})
    again = History()
    again.restore(saved(history), 6, keep=True)
    assert again["val"] == history["val"]


def test_a_save_holds_no_rows_of_training_and_the_newest_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_SAVED_ROWS", 2)
    history = filled(1, 2, 3)
    history.add("train", 3, 1, {"loss": 1.0})
    assert {name: [row[0] for row in one["rows"]] for name, one in saved(history).items()} == {
        "val": [2, 3],
        "train": [],
    }


def test_a_save_holds_no_more_numbers_than_it_may_but_always_a_row() -> None:
    wide = {f"norm_{index}": 0.5 for index in range(module.MAX_SAVED_NUMBERS // 2)}
    history = History()
    for step in (1, 2, 3):
        history.add("train_epoch", step, 1, wide)
    saved = history.to_json()["train_epoch"]
    assert [row[0] for row in saved["rows"]] == [2, 3] and saved["before"] == 2
    history.add("train_epoch", 4, 1, {**wide, **{f"more_{name}": 1.0 for name in wide}, "x": 1.0})
    assert [row[0] for row in history.to_json()["train_epoch"]["rows"]] == [4]


def test_later_rows_are_forgotten_and_earlier_ones_of_the_same_run_kept() -> None:
    history = filled(2, 4)
    history.add("train", 3, 1, {"loss": 3.0})
    checkpoint = saved(history)
    history.add("val", 6, 1, {"loss": 6.0})
    history.add("train", 5, 1, {"loss": 5.0})
    history.restore(checkpoint, 4, keep=True)
    assert steps_of(history, "val") == [2, 4] and steps_of(history, "train") == [3]


def test_rows_in_memory_are_no_part_of_another_run() -> None:
    other = saved(filled(10))
    history = filled(2, 4)
    history.add("train", 4, 1, {"loss": 4.0})
    history.restore(other, 10, keep=False)
    assert steps_of(history, "val") == [10] and "train" not in history


@pytest.fixture
def files() -> dict[str, list[Row]]:
    """Gives the rows of a file: of steps 1 to 9, of each set."""
    rows = [Row(step, 1, {"loss": step / 10}) for step in range(1, 10)]
    return {"train": rows, "val": rows[1::2]}


def test_rows_of_training_before_a_resume_come_from_files(files: dict[str, list[Row]]) -> None:
    history = filled(2, 4, 6)
    for step in range(1, 7):
        history.add("train", step, 1, {"loss": step / 10})
    checkpoint, reads = saved(history), []

    def read(mode: str) -> list[Row]:
        reads.append(mode)
        return files[mode]

    again = History(read)
    again.restore(checkpoint, 6, keep=True)
    again.add("train", 7, 1, {"loss": 0.0})
    assert reads == []
    assert again.series("train", "loss") == {**{s: s / 10 for s in range(1, 7)}, 7: 0.0}
    assert steps_of(again, "train") == [1, 2, 3, 4, 5, 6, 7]
    assert steps_of(again, "val") == [2, 4, 6]
    assert reads == ["train"]  # once, and not where the checkpoint has all


def test_rows_that_are_in_files_stay_so_over_a_second_resume(files: dict[str, list[Row]]) -> None:
    first = History(files.__getitem__)
    first.restore({"train": {"until": 3, "before": 4, "rows": []}}, 3, keep=True)
    second = History(files.__getitem__)
    second.restore(saved(first), 3, keep=True)  # nothing was logged in between
    second.add("train", 4, 1, {"loss": 0.4})
    third = History(files.__getitem__)
    third.restore(saved(second), 4, keep=True)
    assert steps_of(second, "train") == steps_of(third, "train") == [1, 2, 3, 4]


def test_a_return_within_a_process_keeps_what_is_only_in_files(files: dict[str, list[Row]]) -> None:
    history = History(files.__getitem__)
    history.restore({"train": {"until": 3, "before": 4, "rows": []}}, 3, keep=True)
    history.add("train", 5, 1, {"loss": 50.0})
    checkpoint = saved(history)
    history.add("train", 7, 1, {"loss": 70.0})
    history.restore(checkpoint, 5, keep=True)
    assert list(history.series("train", "loss").values()) == [0.1, 0.2, 0.3, 50.0]


def test_an_older_checkpoint_leaves_all_to_the_files(files: dict[str, list[Row]]) -> None:
    history = History(lambda mode: files.get(mode, []))
    history.restore(None, 5, keep=True)
    assert steps_of(history, "train") == [1, 2, 3, 4, 5] and steps_of(history, "val") == [2, 4]


def test_files_are_not_read_before_a_resume_nor_for_another_run(
    files: dict[str, list[Row]],
) -> None:
    history = History(files.__getitem__)
    assert list(history) == []
    history.restore(saved(filled(4)), 4, keep=False)
    assert list(history) == ["val"] and steps_of(history, "val") == [4]


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        {"val": 3},
        {"val": {"until": 1, "before": 1}},
        {"val": {"until": "x", "before": 1, "rows": []}},
        {"val": {"until": 1, "before": 1, "rows": [[1, 2]]}},
        {"val": {"until": 1, "before": 1, "rows": [[1, 2, {"loss": "low"}]]}},
    ],
)
def test_what_no_save_has_written_is_refused_and_changes_nothing(wrong: Any) -> None:
    history = filled(2)
    with pytest.raises(CheckpointError, match="history of metrics"):
        history.restore(wrong, 2, keep=True)
    assert steps_of(history, "val") == [2]
