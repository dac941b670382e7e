"""When a callback is called."""

from types import SimpleNamespace
from typing import Any

import probes
import pytest

import xtrainer as xt
from xtrainer.callbacks import build_callbacks
from xtrainer.errors import ConfigError
from xtrainer.state import Progress

VAL = probes.numbered(1, first=100)


def callback(step_in_epoch: int = 0, **config: int) -> xt.Callback:
    trainer: Any = SimpleNamespace(progress=Progress(step_in_epoch=step_in_epoch))
    return xt.Callback(xt.CallbackConfig(**config), trainer)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"every_n_epochs": 0}, "every_n_epochs: found 0, expected a number >= 1"),
        ({"every_n_epochs": -1}, "every_n_epochs: found -1"),
        ({"every_n_steps": 0}, "every_n_steps: found 0, expected >= 1, or -1"),
        ({"every_n_steps": -2}, "every_n_steps: found -2"),
    ],
)
def test_frequencies_that_cannot_be_are_errors(config: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        xt.check_configs(trainer=xt.TrainerConfig(callbacks=[xt.CallbackConfig(**config)]))


def test_a_config_without_create_says_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"CallbackConfig has no create\(trainer, data_module=None"):
        xt.CallbackConfig().create(callback().trainer)


@pytest.mark.parametrize(
    ("hook", "args"),
    [
        ("on_training_epoch_start", lambda epoch: (epoch,)),
        ("on_training_epoch_end", lambda epoch: ({}, epoch)),
        ("on_validation_epoch_start", lambda epoch: (epoch, 7)),
        ("on_validation_epoch_end", lambda epoch: ({}, epoch, 7)),
        ("on_test_epoch_start", lambda epoch: (epoch,)),
        ("on_test_epoch_end", lambda epoch: ({}, epoch)),
    ],
)
def test_hooks_of_epochs_are_due_every_so_many_epochs(hook: str, args: Any) -> None:
    due = [epoch for epoch in range(1, 10) if callback(every_n_epochs=3).is_due(hook, args(epoch))]
    assert due == [3, 6, 9]


@pytest.mark.parametrize("hook", ["on_validation_epoch_start", "on_validation_epoch_end"])
@pytest.mark.parametrize(
    ("every", "expected"), [(-1, [1, 2, 3, 4]), (1, [1, 2, 3, 4]), (2, [2, 4])]
)
def test_validation_within_an_epoch_is_due_every_so_many_steps(
    hook: str, every: int, expected: list[int]
) -> None:
    within = callback(step_in_epoch=1, every_n_epochs=5, every_n_steps=every)
    assert [step for step in range(1, 5) if within.is_due(hook, ({}, 1, step))] == expected


@pytest.mark.parametrize(
    "hook",
    ["on_training_start", "on_training_end", "on_training_log", "on_exception", "finalize"],
)
def test_other_hooks_are_always_due(hook: str) -> None:
    assert callback(every_n_epochs=7, every_n_steps=7).is_due(hook, ({}, 1))


def test_a_step_hook_that_does_nothing_has_no_interval() -> None:
    assert callback(every_n_steps=3).step_interval() is None


@pytest.mark.parametrize(("every", "interval"), [(-1, 1), (1, 1), (4, 4)])
def test_a_step_hook_is_called_every_so_many_steps(every: int, interval: int) -> None:
    trainer: Any = SimpleNamespace(progress=Progress())
    assert probes.Recorder(trainer, every_n_steps=every).step_interval() == interval


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (-1, [1, 2, 3, 4, 5, 6, 7]),
        (1, [1, 2, 3, 4, 5, 6, 7]),
        (3, [3, 3, 3, 6, 6, 6, 9]),
        (7, [7, 7, 7, 7, 7, 7, 7]),
    ],
)
def test_the_next_step_of_a_hook_is_the_next_multiple(every: int, expected: list[int]) -> None:
    trainer: Any = SimpleNamespace(progress=Progress())
    recorder = probes.Recorder(trainer, every_n_steps=every)
    assert [recorder.next_step(step) for step in range(7)] == expected


@pytest.mark.parametrize("every", [-1, 1, 3])
def test_a_step_hook_that_does_nothing_has_no_next_step(every: int) -> None:
    quiet = callback(every_n_steps=every)
    assert [quiet.next_step(step) for step in range(4)] == [None] * 4


def test_a_callback_may_say_itself_what_its_next_step_is(stage: probes.Repeatable) -> None:
    class Once(probes.Recorder):
        def next_step(self, step: int) -> int | None:
            return 4 if step < 4 else None

    once = Once(stage.trainer, hooks=("on_training_step",))
    trainer = stage.begin(lambda trainer: once)
    trainer.train_model(probes.numbered(3), num_epochs=2)
    assert once.at("on_training_step") == [(2, 4)]


@pytest.mark.parametrize(
    ("make", "account"),
    [
        (lambda trainer: probes.Recorder(trainer), ("callbacks", "Recorder")),
        (xt.LearningRateMonitorConfig().create, ("callbacks", "LearningRateMonitor")),
        (
            xt.ModelCheckpointConfig(log_path="unused").create,
            ("checkpoint", "ModelCheckpoint"),
        ),
    ],
    ids=["own", "monitor", "checkpoint"],
)
def test_the_time_of_a_callback_is_counted_for_what_it_does(
    stage: probes.Repeatable, make: Any, account: tuple[str, str]
) -> None:
    assert make(stage.begin()).account == account


def test_a_run_asks_no_callback_that_does_nothing_at_a_step(stage: probes.Repeatable) -> None:
    quiet = lambda trainer: xt.Callback(xt.CallbackConfig(), trainer)  # noqa: E731
    trainer = stage.begin(quiet, xt.LearningRateMonitorConfig())
    assert trainer.step_hooks() == []


def test_in_a_run_steps_are_counted_over_epochs(stage: probes.Repeatable) -> None:
    recorder = probes.Recorder(stage.trainer, hooks=("on_training_step",), every_n_steps=2)
    trainer = stage.begin(lambda trainer: recorder)
    trainer.train_model(probes.numbered(3), num_epochs=2)
    assert recorder.at("on_training_step") == [(1, 2), (2, 4), (2, 6)]


def test_in_a_run_epochs_are_counted(stage: probes.Repeatable) -> None:
    hooks = ("on_training_epoch_start", "on_training_epoch_end", "on_validation_epoch_end")
    recorder = probes.Recorder(stage.trainer, hooks=hooks, every_n_epochs=2)
    trainer = stage.begin(lambda trainer: recorder)
    trainer.train_model(probes.numbered(2), VAL, num_epochs=5)
    assert recorder.at("on_training_epoch_start") == [(2,), (4,)]
    assert recorder.at("on_training_epoch_end") == [(2,), (4,)]
    assert recorder.at("on_validation_epoch_end") == [(2, 4), (4, 8)]


def test_in_a_run_validations_within_epochs_are_counted_in_steps(stage: probes.Repeatable) -> None:
    hooks = ("on_validation_epoch_start", "on_validation_epoch_end")
    recorder = probes.Recorder(stage.trainer, hooks=hooks, every_n_steps=4)
    trainer = stage.begin(lambda trainer: recorder, check_val_every_n_steps=2)
    trainer.train_model(probes.numbered(9), VAL, num_epochs=1)
    assert recorder.at(hooks[0]) == recorder.at(hooks[1]) == [(1, 4), (1, 8), (1, 9)]


@pytest.mark.parametrize(("main", "names"), [(True, ["a", "b"]), (False, ["a"])])
def test_other_processes_go_without_callbacks_of_the_main_one(
    monkeypatch: pytest.MonkeyPatch, main: bool, names: list[str]
) -> None:
    class Named(xt.CallbackConfig):
        def create(self, trainer: Any, data_module: Any = None) -> Any:
            return "b" if self.main_process_only else "a"

    monkeypatch.setattr("xtrainer.callbacks.base.is_main_process", lambda: main)
    trainer: Any = SimpleNamespace()
    configs = [Named(), Named(main_process_only=True)]
    assert build_callbacks(configs, trainer) == names  # type: ignore[comparison-overlap]


def test_callbacks_are_built_in_order_with_the_data_module() -> None:
    made = []

    class Given(xt.CallbackConfig):
        def create(self, trainer: Any, data_module: Any = None) -> Any:
            made.append((self.every_n_epochs, trainer, data_module))

    trainer: Any = SimpleNamespace()
    build_callbacks([Given(every_n_epochs=1), Given(every_n_epochs=2)], trainer, "data")
    assert made == [(1, trainer, "data"), (2, trainer, "data")]


def test_a_dataset_is_shared_with_every_callback(stage: probes.Repeatable) -> None:
    make = lambda trainer: xt.Callback(xt.CallbackConfig(), trainer)  # noqa: E731
    trainer = stage.begin(make, make)
    trainer.set_dataset(VAL)
    assert [each.dataset for each in trainer.callbacks] == [VAL, VAL]


def test_a_callback_without_a_state_keeps_nothing() -> None:
    quiet = callback()
    quiet.load_state_dict({})
    assert quiet.state_dict() == {}
