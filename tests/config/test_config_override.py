"""Does the command line change what it names, by its type, and nothing else?"""

import sys

import pytest
from ml_collections import ConfigDict, config_dict

from xtrainer.config import parse_config
from xtrainer.errors import ConfigError


@pytest.fixture
def config() -> ConfigDict:
    made = ConfigDict(
        {"steps": 10, "optimizer": {"lr": 1e-2, "nesterov": True}, "shape": (1, 2), "path": None}
    )
    made.tools = [{"every": 1}]
    made.limit = config_dict.placeholder(int)
    return made


def test_overrides_keep_the_type_of_the_field(config: ConfigDict) -> None:
    arguments = ["steps=20", "optimizer.lr=1", "optimizer.nesterov=False", "shape=(3,4)", "limit=5"]
    changed = parse_config(config, [f"--config.{argument}" for argument in arguments])
    assert changed.to_dict() == {
        "steps": 20,
        "optimizer": {"lr": 1.0, "nesterov": False},
        "shape": (3, 4),
        "path": None,
        "tools": [{"every": 1}],
        "limit": 5,
    }
    assert isinstance(changed.optimizer.lr, float)


def test_the_given_config_is_left_as_it_was(config: ConfigDict) -> None:
    before = config.to_dict()
    parse_config(config, ["--config.optimizer.lr=3.0", "--config.tools[0].every=7"])
    assert config.to_dict() == before
    assert config.tools == [{"every": 1}]


def test_an_item_of_a_list_can_be_changed(config: ConfigDict) -> None:
    assert parse_config(config, ["--config.tools[0].every=7"]).tools == [{"every": 7}]


def test_the_last_of_two_overrides_counts(config: ConfigDict) -> None:
    assert parse_config(config, ["--config.steps=1", "--config.steps=2"]).steps == 2


def test_references_follow_their_source(config: ConfigDict) -> None:
    config.warmup = config.get_ref("steps")
    assert parse_config(config, ["--config.steps=50"]).warmup == 50


def test_the_result_takes_no_new_keys(config: ConfigDict) -> None:
    with pytest.raises(AttributeError):
        parse_config(config, []).setps = 3


def test_the_process_arguments_are_read_and_kept(
    config: ConfigDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["script.py", "--config.steps=5"])
    assert parse_config(config).steps == 5
    assert sys.argv == ["script.py", "--config.steps=5"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.optimizer.lrr=1", "Did you mean 'optimizer.lr'"),
        ("--config.steps=1e3", "--config.steps=1e3 does not fit"),
        ("--config.optimizer.nesterov=maybe", "nesterov=maybe does not fit"),
        ("--config.limit=x", "--config.limit=x does not fit"),
        ("--config.steps", "Missing value"),
        ("--config.tools[4].every=1", "does not fit the config"),
        ("--config.path=runs", "holds None there.*placeholder"),
        ("--steps=3", r"Found the argument '--steps=3', expected --config\.PATH=VALUE"),
        ("train", "Found the argument 'train'"),
    ],
)
def test_a_wrong_argument_is_an_error(config: ConfigDict, argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(config, [argument])


def test_all_wrong_arguments_are_reported_together(config: ConfigDict) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(config, ["--config.steps=x", "--config.stepz=1", "y", "--config.limit=1"])
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("value", ["(" * 3000, "[" * 10**5, "-" * 3000 + "1", "9" * 6000])
@pytest.mark.parametrize("name", ["steps", "shape", "limit"])
def test_a_value_that_is_too_deep_or_too_long_is_an_error_of_ours(
    config: ConfigDict, name: str, value: str
) -> None:
    try:
        changed = parse_config(config, [f"--config.{name}={value}"])
    except ConfigError:
        return
    assert name == "shape" and changed.to_dict().keys() == config.to_dict().keys()
