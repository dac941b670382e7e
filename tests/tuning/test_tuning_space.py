"""Do a trial's values reach the config, and are mistakes told before one is drawn?"""

from typing import Any

import pytest
from ml_collections import ConfigDict

import xtrainer as xt
from xtrainer.tuning import Choice, Float, Int, suggest


class Highest:
    """A trial that takes the end of every range."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.asked[name] = ("float", low, high, log)
        return high

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        self.asked[name] = ("int", low, high, step, log)
        return high

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.asked[name] = ("choice", choices)
        return choices[-1]


def config() -> ConfigDict:
    settings = ConfigDict({"optimizer": {"name": "sgd", "scheduler": {"lr": 0.1}}, "steps": 5})
    settings.half = settings.get_oneway_ref("steps") // 2
    return settings


def test_values_are_set_and_what_follows_from_them_follows() -> None:
    trial, settings = Highest(), config()
    space = {
        "optimizer.scheduler.lr": Float(1e-3, 1.0, log=True),
        "steps": Int(2, 8, step=2),
        "optimizer.name": Choice(("sgd", "adam")),
    }
    found = suggest(trial, space, settings)
    assert found == {"optimizer.scheduler.lr": 1.0, "steps": 8, "optimizer.name": "adam"}
    assert settings.to_dict() == {
        "optimizer": {"name": "adam", "scheduler": {"lr": 1.0}}, "steps": 8, "half": 4,
    }  # fmt: skip
    assert trial.asked == {
        "optimizer.scheduler.lr": ("float", 1e-3, 1.0, True),
        "steps": ("int", 2, 8, 2, False),
        "optimizer.name": ("choice", ("sgd", "adam")),
    }


def test_all_mistakes_are_told_before_a_value_is_drawn() -> None:
    trial = Highest()
    space = {
        "optimizer.sheduler.lr": Float(1e-3, 1.0),
        "optimizer.scheduler": Choice((1,)),
        "optimizer.scheduler.lr": Float(0.0, 1.0, log=True),
        "steps": Int(9, 2),
        "optimizer.name": Choice(()),
    }
    with pytest.raises(xt.ConfigError) as caught:
        suggest(trial, space, config())  # type: ignore[arg-type]
    assert len(caught.value.problems) == 5
    assert "Did you mean 'optimizer.scheduler.lr'?" in caught.value.problems[0]
    assert trial.asked == {}


@pytest.mark.parametrize(
    "values",
    [
        Float(2.0, 1.0),
        Float(0.0, float("inf")),
        Int(1, 5, step=0),
        Int(0, 5, log=True),
        Int(1, 5, step=2, log=True),
        Int(1.0, 5),  # type: ignore[arg-type]
        Choice(([1], [2])),  # type: ignore[arg-type]
    ],
)
def test_a_range_that_cannot_be_is_found(values: Any) -> None:
    assert values.problem() is not None


def test_a_value_of_another_type_than_the_configs_is_refused() -> None:
    with pytest.raises(xt.ConfigError, match="steps: found 'many', which does not fit"):
        suggest(Highest(), {"steps": Choice((3, "many"))}, config())
