"""Stopping and going on: one run in pieces equals the run in one piece, bit for bit."""

from collections.abc import Callable, Iterator
from typing import Any

import probes
import pytest

import xtrainer as xt
from xtrainer.checkpoint import list_steps
from xtrainer.loop import StopReason

VAL = probes.numbered(2, first=100)
Make = Callable[[], Any]


class Countless:
    """A loader that can be iterated again and does not know its length."""

    def __iter__(self) -> Iterator[probes.Batch]:
        return iter(probes.numbered(5))


def shuffled() -> xt.ArrayLoader:
    return xt.ArrayLoader(probes.examples(18), batch_size=4, shuffle=True, seed=3)


def endless() -> xt.ArrayLoader:
    return xt.ArrayLoader(probes.examples(18), batch_size=4, shuffle=True, endless=True)


def in_pieces(
    stage: probes.Repeatable, loader: Any, calls: list[dict[str, int]], *callbacks: Any
) -> tuple[Any, list[float]]:
    """Returns what was learned and which batches were trained on, in several calls."""
    trainer = stage.begin(*callbacks)
    for call in calls:
        trainer.train_model(loader, VAL, **call)
        while trainer.stop_reason is StopReason.REQUESTED:
            trainer.train_model(loader, VAL, **call)
    learned, progress = probes.learned(trainer)
    progress.pop("validations")  # a piece that ends within an epoch validates once more
    return (learned, progress), trainer.logger.column("id")


def assert_same_in_pieces(stage: probes.Repeatable, make: Make, *calls: dict[str, int]) -> None:
    whole, whole_order = in_pieces(stage, make(), [calls[-1]])
    parts, order = in_pieces(stage, make(), list(calls))
    assert order == whole_order
    probes.assert_same_course(parts, whole)


@pytest.mark.parametrize("make", [lambda: probes.numbered(5), shuffled, Countless])
def test_more_epochs_continue_the_run(stage: probes.Repeatable, make: Make) -> None:
    assert_same_in_pieces(stage, make, {"num_epochs": 1}, {"num_epochs": 3})


@pytest.mark.parametrize(
    "make",
    [
        lambda: probes.numbered(5),
        shuffled,
        endless,
        Countless,
        lambda: probes.generate(probes.numbered(11)),
    ],
)
@pytest.mark.parametrize("steps_per_epoch", [3, 5])
@pytest.mark.parametrize("first", [1, 4, 5, 6])
def test_more_steps_continue_the_run(
    stage: probes.Repeatable, make: Make, steps_per_epoch: int, first: int
) -> None:
    calls = [
        {"num_train_steps": steps, "steps_per_epoch": steps_per_epoch} for steps in (first, 11)
    ]
    assert_same_in_pieces(stage, make, *calls)


@pytest.mark.parametrize("make", [lambda: probes.numbered(5), shuffled, Countless])
@pytest.mark.parametrize("first", [3, 5, 7])
def test_more_steps_continue_epochs_that_are_passes(
    stage: probes.Repeatable, make: Make, first: int
) -> None:
    assert_same_in_pieces(stage, make, {"num_train_steps": first}, {"num_train_steps": 12})


def test_epochs_can_follow_steps(stage: probes.Repeatable) -> None:
    whole, order = in_pieces(stage, shuffled(), [{"num_epochs": 2}])
    parts, parts_order = in_pieces(stage, shuffled(), [{"num_train_steps": 3}, {"num_epochs": 2}])
    assert parts_order == order
    probes.assert_same_course(parts, whole)


@pytest.mark.parametrize("make", [lambda: probes.numbered(5), shuffled, Countless])
@pytest.mark.parametrize("step", [1, 3, 5, 6, 9])
def test_a_stop_within_an_epoch_can_be_continued(
    stage: probes.Repeatable, make: Make, step: int
) -> None:
    end = [{"num_epochs": 2}]
    whole, order = in_pieces(stage, make(), end)
    parts, parts_order = in_pieces(stage, make(), end, probes.stop_at(step))
    assert parts_order == order
    probes.assert_same_course(parts, whole)


@pytest.mark.parametrize("step", [1, 2, 6])
def test_a_stop_loses_no_batch_of_an_iterator(stage: probes.Repeatable, step: int) -> None:
    batches = probes.generate(probes.numbered(7))
    _, order = in_pieces(stage, batches, [{"num_train_steps": 7}], probes.stop_at(step))
    assert order == [1, 2, 3, 4, 5, 6, 7]


def test_calls_lose_no_batch_of_an_iterator(stage: probes.Repeatable) -> None:
    batches = probes.generate(probes.numbered(7))
    calls = [{"num_train_steps": steps} for steps in (2, 3, 7)]
    _, order = in_pieces(stage, batches, calls)
    assert order == [1, 2, 3, 4, 5, 6, 7]


def test_steps_read_no_more_of_an_iterator_than_they_take(stage: probes.Repeatable) -> None:
    read: list[int] = []
    stage.begin().train_model(probes.generate(probes.numbered(9), read), num_train_steps=3)
    assert read == [1, 2, 3]


def test_what_was_read_ahead_of_a_stop_is_not_read_again(stage: probes.Repeatable) -> None:
    read: list[int] = []
    batches = probes.generate(probes.numbered(7), read)
    trainer = stage.begin(probes.stop_at(2))
    trainer.train_model(batches, num_epochs=1)
    assert len(read) >= 2
    trainer.train_model(batches, num_epochs=1)
    assert read == [1, 2, 3, 4, 5, 6, 7]
    assert trainer.logger.column("id") == [1, 2, 3, 4, 5, 6, 7]


def test_a_call_that_is_already_done_does_nothing(stage: probes.Repeatable) -> None:
    trainer, loader = stage.begin(), shuffled()
    trainer.train_model(loader, VAL, num_epochs=2)
    before, rows = probes.learned(trainer), list(trainer.logger.all)
    assert trainer.train_model(loader, VAL, num_epochs=2) == {}
    assert trainer.train_model(loader, VAL, num_train_steps=9) == {}
    assert trainer.stop_reason is StopReason.NOTHING_TO_DO
    assert trainer.logger.all == rows
    probes.assert_same_course(probes.learned(trainer), before)


def test_a_call_that_is_already_done_reads_nothing(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    trainer.train_model(probes.numbered(2), num_epochs=1)
    read: list[int] = []
    trainer.train_model(probes.generate(probes.numbered(2), read), num_epochs=1)
    assert read == []


def test_a_call_that_is_already_done_still_tests(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    trainer.train_model(probes.numbered(2), num_epochs=1)
    results = trainer.train_model(probes.numbered(2), VAL, VAL, num_epochs=1)
    assert list(results) == ["test"]


def test_the_reason_of_a_stop_is_kept(stage: probes.Repeatable) -> None:
    def act(trainer: Any, *args: Any) -> None:
        trainer.request_stop(detail="enough")
        trainer.request_stop(detail="more than enough")

    trainer = stage.begin(probes.acting("on_training_step", act))
    trainer.train_model(probes.numbered(3), num_epochs=1)
    assert (trainer.stop_reason, trainer.stop_detail) == (StopReason.REQUESTED, "enough")
    assert trainer.global_step == 1
    assert trainer.logger.statuses == ["stopped"]


@pytest.mark.parametrize(
    ("hook", "at", "steps"),
    [
        ("on_training_start", 0, 0),
        ("on_training_epoch_start", 0, 0),
        ("on_training_epoch_start", 3, 3),
        ("on_training_step", 2, 2),
        ("on_training_log", 2, 2),
        ("on_validation_epoch_start", 2, 2),
        ("on_validation_epoch_end", 2, 2),
        ("on_training_epoch_end", 3, 3),
        ("on_validation_epoch_end", 3, 3),
    ],
)
def test_a_stop_can_be_asked_for_in_every_hook(
    stage: probes.Repeatable, hook: str, at: int, steps: int
) -> None:
    trainer = stage.begin(probes.stop_at(at, hook), check_val_every_n_steps=2)
    trainer.train_model(probes.numbered(3), VAL, num_epochs=3)
    assert trainer.stop_reason is StopReason.REQUESTED
    assert trainer.global_step == int(trainer.state.step) == steps
    assert trainer.logger.column("id") == [1, 2, 3][:steps]


def test_what_is_due_at_the_step_of_a_stop_is_done(stage: probes.Repeatable, tmp_path: Any) -> None:
    recorder = probes.Recorder(stage.trainer, hooks=("on_training_step",))
    saving = xt.ModelCheckpointConfig(log_path=str(tmp_path), every_n_steps=2, save_last=False)
    trainer = stage.begin(
        probes.stop_at(2), saving, lambda trainer: recorder, check_val_every_n_steps=2
    )
    results = trainer.train_model(probes.numbered(5), VAL, num_epochs=1)
    assert list(results) == ["val_step_2"]
    assert list_steps(tmp_path) == [2]
    assert recorder.at("on_training_step") == [(1, 1), (1, 2)]


def test_a_stop_at_the_last_step_of_a_row_still_validates(stage: probes.Repeatable) -> None:
    # Row 1 is given out at step 2, in front of the validation of that step.
    asks = lambda trainer, metrics, step: trainer.request_stop()  # noqa: E731
    trainer = stage.begin(probes.acting("on_training_log", asks), check_val_every_n_steps=2)
    results = trainer.train_model(probes.numbered(5), VAL, num_epochs=1)
    assert list(results) == ["val_step_2"]


def test_a_stop_from_outside_loses_no_row(stage: probes.Repeatable) -> None:
    trainer = stage.begin()

    def loader() -> Iterator[probes.Batch]:
        for batch in probes.numbered(9):
            if batch["ids"][0] == 5:
                trainer.request_stop()
            yield batch

    trainer.train_model(loader(), num_epochs=1)
    assert trainer.stop_reason is StopReason.REQUESTED
    assert trainer.logger.steps() == list(range(1, trainer.global_step + 1))


@pytest.mark.parametrize(
    "make",
    [lambda: probes.numbered(3), lambda: xt.ArrayLoader(probes.examples(12), batch_size=4)],
)
def test_an_epoch_ends_once_though_calls_meet_at_its_end(
    stage: probes.Repeatable, make: Make
) -> None:
    recorder = probes.Recorder(stage.trainer, hooks=("on_training_epoch_end",))
    trainer, loader = stage.begin(lambda trainer: recorder), make()
    for steps in (3, 5):
        trainer.train_model(loader, VAL, num_train_steps=steps)
    assert recorder.at("on_training_epoch_end") == [(1,), (2,)]
    assert trainer.logger.steps("train_epoch") == trainer.logger.steps("val") == [3, 5]


def test_an_epoch_ends_once_though_a_stop_comes_at_its_end(stage: probes.Repeatable) -> None:
    recorder = probes.Recorder(stage.trainer, hooks=("on_training_epoch_end",))
    trainer = stage.begin(probes.stop_at(3), lambda trainer: recorder)
    loader, results = probes.numbered(3), {}
    for _ in range(2):
        results |= trainer.train_model(loader, VAL, num_epochs=2)
    assert recorder.at("on_training_epoch_end") == [(1,), (2,)]
    assert list(results) == ["val_epoch_1", "val_epoch_2"]


def test_other_loaders_can_follow(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    trainer.train_model(probes.numbered(2), num_epochs=1)
    trainer.train_model(probes.numbered(2, first=50), num_epochs=2)
    assert trainer.logger.column("id") == [1, 2, 50, 51]


def test_each_call_closes_and_the_next_opens_again(stage: probes.Repeatable) -> None:
    recorder = probes.Recorder(stage.trainer, hooks=("on_training_start", "finalize"))
    trainer = stage.begin(lambda trainer: recorder)
    for epochs in (1, 2, 2):
        trainer.train_model(probes.numbered(2), num_epochs=epochs)
    assert recorder.names() == ["on_training_start", "finalize"] * 3
    assert trainer.logger.statuses == ["completed"] * 3
