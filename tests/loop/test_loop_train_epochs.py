"""When epochs end, when validation comes, and what the callbacks hear of it."""

from collections.abc import Iterator
from typing import Any

import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.errors import LoaderError
from xtrainer.loop import StopReason

VAL = probes.numbered(2, first=100)


class Endless:
    """A loader without an end and without a length, which counts its passes."""

    def __init__(self, count: int) -> None:
        self.batches, self.passes = probes.numbered(count), 0

    def __iter__(self) -> Iterator[probes.Batch]:
        self.passes += 1
        while True:
            yield from self.batches


class Drying:
    """A loader whose first pass has batches and whose later passes have none."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[probes.Batch]:
        self.passes += 1
        return iter(probes.numbered(3) if self.passes == 1 else [])


def test_an_epoch_is_a_pass(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    trainer.train_model(probes.numbered(3), num_epochs=2)
    assert trainer.logger.column("id") == [1, 2, 3, 1, 2, 3]
    assert trainer.logger.steps("train_epoch") == [3, 6]
    expected = xt.Progress(step=6, epochs_done=2, examples=24, batch_rows=4)
    assert trainer.progress == expected
    assert int(trainer.state.step) == trainer.global_step == 6
    assert trainer.stop_reason is StopReason.FINISHED


def test_steps_per_epoch_ends_the_epochs_of_an_endless_loader(stage: probes.Repeatable) -> None:
    trainer, endless = stage.begin(), Endless(5)
    results = trainer.train_model(endless, VAL, num_epochs=3, steps_per_epoch=4)
    assert list(results) == ["val_epoch_1", "val_epoch_2", "val_epoch_3"]
    assert trainer.logger.steps("val") == trainer.logger.steps("train_epoch") == [4, 8, 12]
    assert trainer.logger.column("id") == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2]
    assert endless.passes == 1


def test_a_pass_goes_on_in_the_next_epoch(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    trainer.train_model(probes.numbered(5), num_epochs=2, steps_per_epoch=3)
    assert trainer.logger.column("id") == [1, 2, 3, 4, 5]
    assert trainer.logger.steps("train_epoch") == [3, 5]


def test_with_epochs_a_short_pass_ends_the_epoch(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    results = trainer.train_model(probes.numbered(3), VAL, num_epochs=2, steps_per_epoch=5)
    assert trainer.logger.steps("val") == [3, 6]
    assert list(results) == ["val_epoch_1", "val_epoch_2"]


def test_with_steps_a_short_pass_is_followed_by_another(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    results = trainer.train_model(probes.numbered(3), VAL, num_train_steps=10, steps_per_epoch=5)
    assert trainer.logger.column("id") == [1, 2, 3, 1, 2, 3, 1, 2, 3, 1]
    assert trainer.logger.steps("val") == [5, 10]
    assert list(results) == ["val_epoch_1", "val_epoch_2"]


def test_with_steps_alone_an_epoch_is_a_pass(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    results = trainer.train_model(probes.numbered(3), VAL, num_train_steps=7)
    assert trainer.logger.column("id") == [1, 2, 3, 1, 2, 3, 1]
    assert trainer.logger.steps("val") == [3, 6, 7]
    assert list(results) == ["val_epoch_1", "val_epoch_2", "val_epoch_3"]
    assert (trainer.progress.epochs_done, trainer.progress.step_in_epoch) == (2, 1)


def test_a_run_that_ends_with_a_pass_has_closed_its_epoch(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    trainer.train_model(probes.numbered(3), num_train_steps=6)
    assert (trainer.progress.epochs_done, trainer.progress.step_in_epoch) == (2, 0)


@pytest.mark.parametrize("end", [{"num_epochs": 2}, {"num_train_steps": 4}])
@pytest.mark.parametrize("empty", [[], iter(())])
def test_an_empty_loader_is_an_error_with_its_name(
    stage: probes.Repeatable, empty: Any, end: dict[str, int]
) -> None:
    with pytest.raises(LoaderError, match="'train' loader gave no batch after step 0, in epoch 1"):
        stage.begin().train_model(empty, **end)


@pytest.mark.parametrize("end", [{"num_epochs": 2}, {"num_train_steps": 4}])
@pytest.mark.parametrize("make", [Drying, lambda: probes.generate(probes.numbered(3))])
def test_a_loader_that_runs_dry_is_an_error(
    stage: probes.Repeatable, make: Any, end: dict[str, int]
) -> None:
    trainer = stage.begin()
    with pytest.raises(LoaderError, match="'train' loader gave no batch after step 3, in epoch 2"):
        trainer.train_model(make(), **end)
    assert trainer.global_step == 3


def test_running_dry_within_an_epoch_is_an_error(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    with pytest.raises(LoaderError, match="gave no batch after step 3, in epoch 1"):
        trainer.train_model(Drying(), num_train_steps=8, steps_per_epoch=8)


def test_validation_by_steps_and_by_epochs_is_done_once_at_one_step(
    stage: probes.Repeatable,
) -> None:
    recorders: list[probes.Recorder] = []

    def record(trainer: Any) -> probes.Recorder:
        recorders.append(probes.Recorder(trainer))
        return recorders[0]

    trainer = stage.begin(record, check_val_every_n_steps=2)
    results = trainer.train_model(probes.numbered(4), VAL, num_epochs=2)
    assert list(results) == [
        "val_step_2", "val_step_4", "val_epoch_1", "val_step_6", "val_step_8", "val_epoch_2",
    ]  # fmt: skip
    assert results["val_step_4"] == results["val_epoch_1"]
    assert results["val_step_2"] != results["val_step_4"]
    assert recorders[0].at("on_validation_epoch_end") == [(1, 2), (1, 4), (2, 6), (2, 8)]
    assert trainer.logger.steps("val") == [2, 4, 6, 8]
    assert trainer.progress.validations == 4


def test_validation_steps_count_on_over_epochs(stage: probes.Repeatable) -> None:
    trainer = stage.begin(check_val_every_n_steps=4, check_val_every_n_epoch=-1)
    results = trainer.train_model(probes.numbered(3), VAL, num_epochs=3)
    assert list(results) == ["val_step_4", "val_step_8"]


def test_validation_every_second_epoch(stage: probes.Repeatable) -> None:
    trainer = stage.begin(check_val_every_n_epoch=2)
    results = trainer.train_model(probes.numbered(2), VAL, num_epochs=5)
    assert list(results) == ["val_epoch_2", "val_epoch_4"]


def test_the_results_are_the_metrics_of_the_state_at_that_step(stage: probes.Repeatable) -> None:
    trainer = stage.begin(check_val_every_n_steps=2, check_val_every_n_epoch=-1)
    results = trainer.train_model(probes.numbered(3), VAL, num_epochs=1)
    trainer = stage.begin()
    trainer.train_model(probes.numbered(3), num_train_steps=2)
    assert trainer.eval_model(VAL) == results["val_step_2"]


def test_without_a_validation_set_nothing_is_validated(stage: probes.Repeatable) -> None:
    recorder = probes.Recorder(stage.trainer)
    trainer = stage.begin(lambda trainer: recorder, check_val_every_n_steps=1)
    assert trainer.train_model(probes.numbered(3), None, num_epochs=1) == {}
    assert not any("validation" in name for name in recorder.names())
    assert trainer.logger.steps("val") == []


def test_a_run_without_logger_and_callbacks() -> None:
    trainer = probes.traced(logger=None)
    assert trainer.callbacks == []
    results = trainer.train_model(probes.numbered(3), VAL, probes.numbered(1), num_epochs=1)
    assert list(results) == ["val_epoch_1", "test"]
    assert trainer.log_path is None


def test_an_iterator_can_be_validated_once(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    results = trainer.train_model(probes.numbered(2), probes.generate(VAL), num_epochs=1)
    assert results["val_epoch_1"]["id"] == 100.5


def test_several_validation_sets_have_their_names_before_their_metrics(
    stage: probes.Repeatable,
) -> None:
    trainer = stage.begin()
    sets = {"a": VAL, "b": probes.numbered(1)}
    results = trainer.train_model(probes.numbered(2), sets, num_epochs=1)
    assert results["val_epoch_1"].keys() == {"a_loss", "a_id", "b_loss", "b_id"}


@pytest.mark.parametrize("end", [{"num_epochs": 0}, {"num_train_steps": 0}])
def test_a_run_of_nothing_does_nothing(stage: probes.Repeatable, end: dict[str, int]) -> None:
    trainer = stage.begin()
    before = probes.learned(trainer)
    assert trainer.train_model(probes.numbered(2), VAL, **end) == {}
    assert trainer.stop_reason is StopReason.NOTHING_TO_DO
    probes.assert_same_course(probes.learned(trainer), before)


def test_a_ragged_last_batch_is_trained_on(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    trainer.train_model([probes.one(1), probes.one(2, rows=3)], num_epochs=2)
    assert trainer.logger.column("id") == [1, 2, 1, 2]
    assert trainer.progress.examples == 14


GOLDEN = """
on_training_start
on_training_epoch_start 1
on_training_step 1 1
on_training_log 1
on_training_log 2
on_validation_epoch_start 1 2
on_validation_epoch_end 1 2
on_epoch_logged val 2
on_training_step 1 2
on_training_step 1 3
on_training_log 3
on_training_epoch_end 1
on_epoch_logged train_epoch 3
on_validation_epoch_start 1 3
on_validation_epoch_end 1 3
on_epoch_logged val 3
on_training_epoch_start 2
on_training_log 4
on_validation_epoch_start 2 4
on_validation_epoch_end 2 4
on_epoch_logged val 4
on_training_step 2 4
on_training_step 2 5
on_training_log 5
on_training_log 6
on_validation_epoch_start 2 6
on_validation_epoch_end 2 6
on_epoch_logged val 6
on_training_step 2 6
on_training_epoch_end 2
on_epoch_logged train_epoch 6
on_training_end
on_test_epoch_start 2
on_test_epoch_end 2
finalize completed
"""


def test_the_hooks_come_in_this_order(stage: probes.Repeatable) -> None:
    recorder = probes.Recorder(stage.trainer)
    trainer = stage.begin(lambda trainer: recorder, check_val_every_n_steps=2)
    trainer.train_model(probes.numbered(3), VAL, probes.numbered(1), num_epochs=2)
    heard = [
        " ".join([name, *(str(arg) for arg in args if not isinstance(arg, dict))])
        for name, args in recorder.calls
    ]
    assert heard == GOLDEN.split("\n")[1:-1]


def test_the_trainer_hears_the_same_hooks_before_its_callbacks() -> None:
    heard: list[str] = []

    class Listening(probes.Traced):
        def on_training_start(self) -> None:
            heard.append("trainer start")

        def on_training_step(self, step_metrics: Any, epoch_idx: int, step_idx: int) -> None:
            heard.append(f"trainer step {epoch_idx} {step_idx}")

        def finalize(self, status: str) -> None:
            heard.append(f"trainer {status}")

    trainer = probes.traced(trainer_class=Listening)
    act = lambda name, args: heard.append("callback " + name)  # noqa: E731
    trainer.callbacks.append(
        probes.Recorder(trainer, act, ("on_training_start", "on_training_step"))
    )
    trainer.train_model(probes.numbered(1), num_epochs=1)
    assert heard == [
        "trainer start", "callback on_training_start", "trainer step 1 1",
        "callback on_training_step", "trainer completed",
    ]  # fmt: skip


def test_what_a_hook_adds_to_validation_metrics_is_logged_and_returned(
    stage: probes.Repeatable,
) -> None:
    add = lambda trainer, metrics, epoch, step: metrics.update(extra=float(step))  # noqa: E731
    trainer = stage.begin(probes.acting("on_validation_epoch_end", add))
    results = trainer.train_model(probes.numbered(2), VAL, num_epochs=2)
    assert results["val_epoch_2"]["extra"] == 4.0
    assert trainer.logger.column("extra", "val") == [2.0, 4.0]


def test_what_a_hook_adds_to_a_training_row_is_logged(stage: probes.Repeatable) -> None:
    add = lambda trainer, metrics, step: metrics.update(extra=step / 2)  # noqa: E731
    trainer = stage.begin(probes.acting("on_training_log", add))
    trainer.train_model(probes.numbered(3), num_epochs=1)
    assert trainer.logger.column("extra") == [0.5, 1.0, 1.5]


def test_what_a_hook_adds_to_an_epochs_metrics_is_logged(stage: probes.Repeatable) -> None:
    add = lambda trainer, metrics, epoch: metrics.update(extra=float(epoch))  # noqa: E731
    trainer = stage.begin(probes.acting("on_training_epoch_end", add))
    trainer.train_model(probes.numbered(2), num_epochs=2)
    assert trainer.logger.column("extra", "train_epoch") == [1.0, 2.0]


def test_what_a_hook_adds_to_test_metrics_is_logged_and_returned(stage: probes.Repeatable) -> None:
    add = lambda trainer, metrics, epoch: metrics.update(extra=9.0)  # noqa: E731
    trainer = stage.begin(probes.acting("on_test_epoch_end", add))
    results = trainer.train_model(probes.numbered(2), None, VAL, num_epochs=1)
    assert results["test"]["extra"] == 9.0
    assert trainer.logger.column("extra", "test") == [9.0]


def test_every_set_is_postprocessed(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = stage.begin()
    mark = lambda metrics: {**metrics, "marked": 1.0}  # noqa: E731
    monkeypatch.setattr(trainer, "get_metric_postprocess_fn", lambda: mark)
    trainer.train_model(probes.numbered(2), VAL, VAL, num_epochs=1)
    for mode in ("train", "train_epoch", "val", "test"):
        assert set(trainer.logger.column("marked", mode)) == {1.0}


def test_a_state_that_is_not_donated_can_still_be_used() -> None:
    trainer = zoo.make_trainer(mesh=zoo.devices(1), donate_train_state=False)
    before, kept = trainer.state, zoo.host(trainer.state)
    trainer.train_model(zoo.loader(), num_train_steps=2)
    zoo.assert_same(before, kept)
