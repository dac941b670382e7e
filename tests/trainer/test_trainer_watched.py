"""Is a trainer watched by the limits of its config, from its restore to its end?"""

import logging
import threading
from typing import Any

import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.loop import watchdog
from xtrainer.trainer.watched import watched


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "xtrainer-watchdog"]


def test_the_limits_are_those_of_the_config() -> None:
    trainer = zoo.make_trainer(
        startup_timeout_s=1.0,
        hang_timeout_s=2.0,
        loader_timeout_s=3.0,
        validation_timeout_s=4.0,
        save_timeout_s=0.0,
        on_hang="report",
    )
    dog = watched(trainer)
    assert dog._limits == watchdog.Limits(
        startup_s=1.0, hang_s=2.0, loader_s=3.0, validation_s=4.0, save_s=0.0
    )
    assert dog._on_hang == "report"


def test_a_run_that_is_debugged_is_never_ended() -> None:
    assert watched(zoo.make_trainer())._on_hang == "end"
    assert watched(zoo.make_trainer(debug=True))._on_hang == "report"


def test_a_callback_that_takes_too_long_is_reported_and_the_run_ends_as_it_should(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[list[str]] = []

    def act(trainer: Any, metrics: Any, epoch: int, step: int) -> None:
        if step == 2:
            seen.append(threads())
            end.wait(0.6)

    end = threading.Event()
    trainer = zoo.make_trainer(hang_timeout_s=0.3, on_hang="report")
    trainer.callbacks.append(probes.acting("on_training_step", act)(trainer))
    with caplog.at_level(logging.WARNING, "xtrainer"):
        trainer.train_model(zoo.loader(), num_train_steps=4)
    assert seen == [["xtrainer-watchdog"]]
    assert threads() == []
    assert trainer.stop_reason is xt.StopReason.FINISHED
    (report, on) = caplog.messages
    assert "hang_timeout_s=0.3: process 0 is at step 2, in 'callbacks'" in report
    assert ", in act: end.wait(0.6)" in report
    assert "The run goes on" in on


def test_a_callback_that_beats_may_take_as_long_as_it_likes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    end = threading.Event()

    def act(trainer: Any, metrics: Any, epoch: int, step: int) -> None:
        for _ in range(12 if step == 2 else 0):
            end.wait(0.1)
            trainer.ledger.beat()

    trainer = zoo.make_trainer(hang_timeout_s=0.6, on_hang="report")
    trainer.callbacks.append(probes.acting("on_training_step", act)(trainer))
    with caplog.at_level(logging.WARNING, "xtrainer"):
        trainer.train_model(zoo.loader(), num_train_steps=4)
    assert caplog.messages == []


def test_a_validation_beats_with_every_batch() -> None:
    trainer = zoo.make_trainer()
    trainer.eval_model(zoo.loader(64, 16))
    assert trainer.ledger.beats == 4


def test_the_watchdog_ends_with_a_run_that_fails() -> None:
    def act(trainer: Any, *args: Any) -> None:
        raise ValueError("broken")

    trainer = zoo.make_trainer()
    trainer.callbacks.append(probes.acting("on_training_step", act)(trainer))
    with pytest.raises(ValueError, match="broken"):
        trainer.train_model(zoo.loader(), num_train_steps=4)
    assert threads() == []
