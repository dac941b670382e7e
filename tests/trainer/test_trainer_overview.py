"""Does a person learn what is about to run?"""

import logging
from typing import Any

import pytest
import zoo

from xtrainer.trainer import overview


@pytest.fixture(scope="module")
def trainer() -> Any:
    return zoo.make_trainer(mesh=zoo.devices(2))


def facts(trainer: Any, *plan: Any, length: int | None = 10) -> dict[str, str]:
    return overview.training_facts(trainer, *plan, length, {"val": 3, "test/a": None})


def test_the_facts_are_those_of_the_trainer_and_its_data(trainer: Any) -> None:
    found = facts(trainer, 3, None, None)
    assert found == {
        "model": "MLP",
        "parameters": "67",
        "devices": "2 x cpu",
        "mesh": "dp=2, fsdp=1, pp=1, tp=1",
        "processes": "1",
        "epochs": "3",
        "steps": "30",
        "batches per pass": "10",
        "starting step": "0",
        "run folder": "none",
        "batches of val": "3",
        "batches of test/a": "not known",
    }


@pytest.mark.parametrize(
    ("plan", "length", "epochs", "steps"),
    [
        ((None, 25, None), 10, "3", "25"),
        ((None, 25, 5), 10, "5", "25"),
        ((2, None, 5), 10, "2", "10"),
        ((2, None, None), None, "2", "not known"),
        ((None, 25, None), None, "not known", "25"),
    ],
)
def test_epochs_and_steps_are_told_where_they_are_known(
    trainer: Any, plan: tuple[Any, ...], length: int | None, epochs: str, steps: str
) -> None:
    found = facts(trainer, *plan, length=length)
    assert (found["epochs"], found["steps"]) == (epochs, steps)


def test_facts_are_logged_one_a_line_and_aligned(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="xtrainer"):
        overview.log_facts({"a": "1", "long": "2"})
    assert caplog.messages == ["a     1", "long  2"]


def test_the_facts_can_be_asked_for_before_training(
    trainer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="xtrainer"):
        trainer.log_training_info(1, None, None, zoo.loader(64), {"a": zoo.loader(32)}, None)
    assert "batches per pass  4" in caplog.messages
    assert "batches of val/a  2" in caplog.messages
