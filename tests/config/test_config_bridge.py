"""Do typed configs and ``ConfigDict`` become each other without loss and without silence?"""

from dataclasses import dataclass, field
from typing import Any

import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from xtrainer.config import Config, from_config_dict, to_config_dict
from xtrainer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LeafConfig(Config):
    rate: float = 0.1
    act: Any = None


@dataclass(frozen=True, kw_only=True)
class SpecialLeafConfig(LeafConfig):
    depth: int = 1


@dataclass(frozen=True, kw_only=True)
class TreeConfig(Config):
    leaf: LeafConfig = LeafConfig()
    leaves: list[LeafConfig] = field(default_factory=list)
    shape: tuple[int, ...] = (1,)
    extra: dict[str, Any] = field(default_factory=dict)


def test_a_config_comes_back_from_a_config_dict_with_its_objects() -> None:
    config = TreeConfig(
        leaf=SpecialLeafConfig(act=len),
        leaves=[SpecialLeafConfig(depth=3), LeafConfig(rate=2.0)],
        shape=(2, 3),
        extra={"window": (1, 2), "inner": LeafConfig()},
    )
    assert from_config_dict(TreeConfig, to_config_dict(config)) == config


def test_values_are_reachable_by_attribute() -> None:
    assert to_config_dict(TreeConfig()).leaf.rate == 0.1


@pytest.mark.parametrize("kind", [ConfigDict, FrozenConfigDict, dict])
def test_nested_config_dicts_are_read(kind: Any) -> None:
    config = from_config_dict(TreeConfig, kind({"leaf": {"rate": 1}, "extra": {"a": {"b": 2}}}))
    assert config == TreeConfig(leaf=LeafConfig(rate=1.0), extra={"a": {"b": 2}})


def test_an_unknown_key_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"TreeConfig\.leaf\.rat: .* Did you mean 'rate'"):
        from_config_dict(TreeConfig, ConfigDict({"leaf": {"rat": 1.0}}))


def test_an_unknown_class_name_is_an_error() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'SpecialLeafConfig'"):
        from_config_dict(TreeConfig, ConfigDict({"leaf": {"class_name": "SpecialLeaf"}}))


def test_none_is_not_taken_for_a_number() -> None:
    with pytest.raises(ConfigError, match=r"leaf\.rate: found None"):
        from_config_dict(TreeConfig, ConfigDict({"leaf": {"rate": None}}))
