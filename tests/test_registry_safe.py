"""Does a name in a saved config choose among ``safe_types``, and nothing else?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

import xtrainer.trainer  # noqa: F401 - all that reads names in files
from xtrainer.config import Config
from xtrainer.errors import ConfigError
from xtrainer.optim import OptimizerConfig, SchedulerConfig
from xtrainer.registry import models, register_model, safe_types


@dataclass(frozen=True, kw_only=True)
class HoldsConfig(Config):
    """A config with a place for any other, and for a model."""

    inner: Config | None = None
    model: Callable[..., Any] | None = None


@pytest.fixture(autouse=True)
def own_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_entries", {})
    register_model("safe_net")(dict)


def read(data: dict[str, Any]) -> HoldsConfig:
    return Config.from_dict(HoldsConfig, data, strict_classname_parsing=True)


def test_each_kind_is_listed() -> None:
    found = safe_types()
    assert list(found) == ["config", "model", "optimizer", "schedule"]
    assert found["model"] == ("safe_net",)
    assert {"HoldsConfig", "TrainerConfig", "ModelCheckpointConfig"} <= set(found["config"])
    assert {"adamw", "optax.lion"} <= set(found["optimizer"])
    assert {"constant", "optax.sgdr_schedule"} <= set(found["schedule"])


def test_every_class_that_is_listed_can_be_named_in_a_file_and_no_other() -> None:
    for name in safe_types()["config"]:
        try:
            assert type(read({"inner": {"class_name": name}}).inner).__name__ == name
        except ConfigError as error:  # fields without a default: the class was chosen all the same
            assert f"{name} needs a value for" in str(error)
    for name in ("TrainerModule", "os.system", "builtins.eval", "xtrainer.config.base.Config"):
        with pytest.raises(ConfigError, match=f"no Config of this program is called '{name}'"):
            read({"inner": {"class_name": name}})


def test_every_model_that_is_listed_can_be_named_in_a_file_and_no_other() -> None:
    assert [read({"model": name}).model for name in safe_types()["model"]] == [dict]
    for name in ("dict", "builtins.dict", "os.system"):
        with pytest.raises(ConfigError, match=f"no model is registered as '{name}'"):
            read({"model": name})


def test_every_optimizer_and_schedule_that_is_listed_can_be_named_and_no_other() -> None:
    def unknown(config: Config) -> bool:
        return any(line.startswith("name: found") for line in config.problems())

    found = safe_types()
    assert not [name for name in found["optimizer"] if unknown(OptimizerConfig(name=name))]
    assert not [name for name in found["schedule"] if unknown(SchedulerConfig(name=name))]
    for name in ("optax.apply_updates", "os.system", "optax.contrib.np.load"):
        assert unknown(OptimizerConfig(name=name)) and unknown(SchedulerConfig(name=name))
