"""Does the class do what its methods say, apart from a whole run?"""

from collections.abc import Iterator
from typing import Any

import pytest
import zoo

import xtrainer as xt
from xtrainer.errors import LoaderError
from xtrainer.hooks import Hooks


class Hooked(zoo.Classifier):
    def __init__(self, *args: Any) -> None:
        self.calls: list[Any] = []
        super().__init__(*args)

    def on_test_epoch_start(self, epoch_idx: int) -> None:
        self.calls.append(("start", epoch_idx))

    def on_test_epoch_end(self, test_metrics: dict[str, float], epoch_idx: int) -> None:
        test_metrics["more"] = 1.0
        self.calls.append(("end", epoch_idx))


class Even(xt.Callback):
    """Is due every second epoch; looks at every step."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(xt.CallbackConfig(every_n_epochs=2, every_n_steps=5), trainer)
        self.calls: list[Any] = []

    def on_test_epoch_start(self, epoch_idx: int) -> None:
        self.calls.append(epoch_idx)

    def on_training_step(self, step_metrics: Any, epoch_idx: int, step_idx: int) -> None:
        self.calls.append(step_idx)


@pytest.fixture(scope="module")
def shared() -> Any:
    return zoo.make_trainer(Hooked, mesh=zoo.devices(1))


@pytest.fixture
def trainer(shared: Any) -> Iterator[Any]:
    """Gives a trainer on one device, without callbacks."""
    yield shared
    shared.calls.clear()
    shared.callbacks.clear()


def test_a_test_calls_its_hooks_on_request_only(trainer: Any) -> None:
    plain = trainer.test_model(zoo.loader(16), epoch_idx=3)
    assert trainer.calls == []
    found = trainer.test_model(zoo.loader(16), apply_callbacks=True, epoch_idx=3)
    assert trainer.calls == [("start", 3), ("end", 3)]
    assert found == {**plain, "more": 1.0}


def test_callbacks_are_notified_when_they_are_due(trainer: Any) -> None:
    trainer.callbacks.append(even := Even(trainer))
    for epoch in (1, 2, 3, 4):
        trainer.notify("on_test_epoch_start", epoch)
    assert even.calls == [2, 4]
    assert [call[1] for call in trainer.calls] == [1, 2, 3, 4]


def test_only_hooks_that_do_something_are_called_at_steps(trainer: Any) -> None:
    assert trainer.step_hooks() == []
    trainer.callbacks.append(xt.Callback(xt.CallbackConfig(), trainer))
    assert trainer.step_hooks() == []
    trainer.callbacks.append(Even(trainer))
    (hook,) = trainer.step_hooks()
    assert [hook.next_step(step) for step in (0, 4, 5)] == [5, 5, 10]
    assert (hook.settled, hook.account) == (False, ("callbacks", "Even"))


def test_the_step_hook_of_the_trainer_is_called_at_every_step(
    trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        Hooked, "on_training_step", lambda self, metrics, epoch, step: seen.append((epoch, step))
    )
    trainer.train_model(zoo.loader(48), num_epochs=1)
    assert seen == [(1, 1), (1, 2), (1, 3)]


def test_the_hooks_of_trainer_and_callbacks_have_one_list(trainer: Any) -> None:
    for name in vars(Hooks):
        assert name.startswith("__") or (hasattr(trainer, name) and hasattr(xt.Callback, name))


def test_another_loss_can_be_evaluated(trainer: Any) -> None:
    def doubled(params: Any, apply_fn: Any, batch: Any, rng: Any, train: bool = False) -> Any:
        loss, rest = trainer.loss_function(params, apply_fn, batch, rng, train)
        return 2 * loss, rest

    found = trainer.evaluate_with(doubled, zoo.loader(21), "doubled")
    assert found["loss"] == pytest.approx(2 * trainer.eval_model(zoo.loader(21))["loss"])


@pytest.mark.parametrize("batches", [[], iter([])])
def test_trying_the_evaluation_needs_a_batch(trainer: Any, batches: Any) -> None:
    with pytest.raises(LoaderError, match="'val' loader is empty, expected a batch"):
        trainer.test_eval_function(batches)


def test_metrics_on_the_devices_can_be_had_without_logging(trainer: Any) -> None:
    window = trainer._run_model_eval(zoo.loader(21))
    assert window.layout.names == ("loss", "accuracy")
    assert int(window.calls) == 2


def test_a_trainer_runs_ahead_and_guards_as_its_config_says(trainer: Any) -> None:
    assert (trainer.max_steps_in_flight, trainer.nonfinite_limit) == (2, 1)
    assert trainer.guards_transfers
