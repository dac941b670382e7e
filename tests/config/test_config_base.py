"""Do configs survive the way to JSON and back, and are all mistakes told together?"""

import dataclasses
import enum
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from xtrainer.config import Config, check_configs
from xtrainer.errors import ConfigError
from xtrainer.registry import models


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True)
class ToolConfig(Config):
    every: int = 1


@dataclass(frozen=True, kw_only=True)
class FileToolConfig(ToolConfig):
    name: str = "metrics"


@dataclass(frozen=True, kw_only=True)
class InnerConfig(Config):
    rate: float = 0.1
    steps: int = 3

    def problems(self) -> list[str]:
        return [] if self.steps >= 0 else [f"steps: found {self.steps}, expected >= 0."]


@dataclass(frozen=True)
class Point:
    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class OuterConfig(Config):
    flag: bool = False
    number: float = 1.0
    count: int = 1
    name: str | None = None
    mode: Literal["sum", "mean", 1] = "mean"
    inner: InnerConfig = InnerConfig()
    tools: list[ToolConfig] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    pair: tuple[str, float] = ("a", 0.0)
    folder: Path | None = None
    place: str | Path = "here"
    mixed: float | str = 0.0
    by_number: dict[int, float] = field(default_factory=dict)
    by_name: dict[str, list[int]] = field(default_factory=dict)
    color: Color = Color.RED
    spec: PartitionSpec = PartitionSpec()
    anything: Any = None
    point: Point | None = None


@dataclass(frozen=True, kw_only=True)
class NeedyConfig(Config):
    size: int
    depth: int


def round_trip(config: Config) -> Config:
    return Config.from_dict(type(config), json.loads(json.dumps(config.to_dict())))


FLOATS = st.floats(allow_nan=False)
KEYS = st.text(max_size=5) | st.integers() | st.sampled_from(["$tuple", "class_name", "not_saved"])
LEAVES = st.none() | st.booleans() | st.integers() | FLOATS | st.text(max_size=5)
ANYTHING = st.recursive(
    LEAVES | st.builds(Path, st.sampled_from(["a/b", "."])) | st.builds(InnerConfig, rate=FLOATS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)
TOOLS = st.builds(ToolConfig, every=st.integers()) | st.builds(
    FileToolConfig, name=st.text(max_size=4)
)
OUTER = st.builds(
    OuterConfig,
    flag=st.booleans(),
    number=FLOATS,
    count=st.integers(),
    name=st.none() | st.text(max_size=4),
    mode=st.sampled_from(["sum", "mean", 1]),
    inner=st.builds(InnerConfig, rate=FLOATS, steps=st.integers()),
    tools=st.lists(TOOLS, max_size=3),
    shape=st.lists(st.integers(), max_size=3).map(tuple),
    pair=st.tuples(st.text(max_size=3), FLOATS),
    folder=st.sampled_from([None, Path("/a/b")]),
    place=st.sampled_from(["a/b", Path("a/b")]),
    mixed=FLOATS | st.sampled_from(["inf", "1.0", ""]),
    by_number=st.dictionaries(st.integers(), FLOATS, max_size=3),
    by_name=st.dictionaries(st.text(max_size=3), st.lists(st.integers(), max_size=2), max_size=2),
    color=st.sampled_from(Color),
    spec=st.sampled_from([PartitionSpec(), PartitionSpec(("dp", "fsdp"), None, "tp")]),
    anything=ANYTHING,
    point=st.none() | st.builds(Point, FLOATS, FLOATS),
)


def same(left: Any, right: Any) -> bool:
    """Equality that tells True from 1, a list from a tuple and a text from a path."""
    if type(left) is not type(right):
        return False
    if dataclasses.is_dataclass(left):
        names = [item.name for item in dataclasses.fields(left)]
        return all(same(getattr(left, name), getattr(right, name)) for name in names)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@settings(max_examples=150, deadline=None)
@given(OUTER)
def test_every_config_comes_back_from_json_unchanged(config: OuterConfig) -> None:
    assert same(round_trip(config), config)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_numbers_come_back_and_the_json_is_standard(value: float) -> None:
    config = OuterConfig(number=value, anything={"x": value})
    text = json.dumps(config.to_dict(), allow_nan=False)
    back = Config.from_dict(OuterConfig, json.loads(text))
    assert repr(back.number) == repr(back.anything["x"]) == repr(value)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, jnp.dtype("int8")])
def test_number_types_come_back_equal(dtype: Any) -> None:
    assert round_trip(OuterConfig(anything=dtype)).anything == dtype  # type: ignore[attr-defined]


def test_numpy_numbers_are_saved_as_python_numbers() -> None:
    data = OuterConfig(anything=[np.int64(3), np.bool_(True), np.float32(0.5)]).to_dict()
    assert json.dumps(data["anything"]) == "[3, true, 0.5]"


def test_a_typed_tuple_is_saved_as_a_plain_list() -> None:
    assert OuterConfig(shape=(1, 2)).to_dict()["shape"] == [1, 2]


def test_a_registered_model_class_comes_back_by_its_name() -> None:
    @models.register("config_base_model")
    class Model: ...

    @dataclass(frozen=True, kw_only=True)
    class HoldsModelConfig(Config):
        model: type[Any]

    config = HoldsModelConfig(model=Model)
    assert config.to_dict()["model"] == "config_base_model"
    assert round_trip(config) == config


def test_an_unregistered_name_for_a_model_is_an_error_with_the_nearest() -> None:
    @models.register("config_base_resnet")
    class Model: ...

    @dataclass(frozen=True, kw_only=True)
    class NamesModelConfig(Config):
        model: type[Any]

    with pytest.raises(ConfigError, match="Did you mean 'config_base_resnet'"):
        Config.from_dict(NamesModelConfig, {"model": "config_base_resmet"})


class Unregistered: ...


@pytest.mark.parametrize("value", [Unregistered, len, Unregistered(), np.zeros(2), {1, 2}])
def test_a_value_without_json_form_must_be_given_again(value: Any) -> None:
    data = json.loads(json.dumps(OuterConfig(anything=value).to_dict()))
    assert set(data["anything"]) == {"not_saved"}
    with pytest.raises(ConfigError, match=r"OuterConfig\.anything: .* could not be saved"):
        Config.from_dict(OuterConfig, data)


@pytest.mark.parametrize("mark", [{"$float": "1e3"}, {"$dtype": "os"}, {"$tuple": 3}, {"$spec": 1}])
def test_a_damaged_mark_is_an_error(mark: dict) -> None:
    with pytest.raises(ConfigError, match=r"anything: cannot read the mark"):
        Config.from_dict(OuterConfig, {"anything": mark})


def test_class_names_choose_the_class_in_a_list() -> None:
    data = {"tools": [{"class_name": "FileToolConfig", "name": "x"}, {"every": 5}]}
    expected = [FileToolConfig(name="x"), ToolConfig(every=5)]
    assert Config.from_dict(OuterConfig, data).tools == expected


def test_a_class_of_another_family_is_not_chosen() -> None:
    data = {"tools": [{"class_name": "InnerConfig", "rate": 0.5}]}
    assert Config.from_dict(OuterConfig, data).tools == [ToolConfig()]


def test_an_unknown_class_name_stands_for_the_annotated_class_by_default() -> None:
    data = {"inner": {"class_name": "Gone", "steps": 7}}
    assert Config.from_dict(OuterConfig, data).inner == InnerConfig(steps=7)


def test_strict_class_names_give_the_nearest_name() -> None:
    data = {"tools": [{"class_name": "FileTolConfig"}]}
    with pytest.raises(ConfigError, match=r"tools\[0\]\.class_name.*Did you mean 'FileToolConfig'"):
        Config.from_dict(OuterConfig, data, strict_classname_parsing=True)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("key", ["inner", "anything"])
def test_a_dotted_class_name_imports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, strict: bool
) -> None:
    (tmp_path / "canary_module.py").write_text("from pathlib import Path\nPath('hit').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    data = {key: {"class_name": "canary_module.Canary"}}
    try:
        Config.from_dict(OuterConfig, data, strict_classname_parsing=strict)
    except ConfigError:
        assert strict
    assert "canary_module" not in sys.modules
    assert not (tmp_path / "hit").exists()


def test_unknown_keys_are_left_out_by_default() -> None:
    assert Config.from_dict(InnerConfig, {"steps": 2, "old_field": 1}) == InnerConfig(steps=2)


def test_unknown_keys_are_errors_on_request() -> None:
    with pytest.raises(ConfigError, match=r"InnerConfig\.step: .* Did you mean 'steps'"):
        Config.from_dict(InnerConfig, {"step": 2}, ignore_extensive_attributes=False)


def test_none_is_no_whole_number_by_default() -> None:
    with pytest.raises(ConfigError, match=r"InnerConfig\.steps: found None"):
        Config.from_dict(InnerConfig, {"steps": None})


def test_none_stands_for_zero_on_request() -> None:
    read = Config.from_dict(InnerConfig, {"steps": None}, none_to_zero_for_ints=True)
    assert read == InnerConfig(steps=0)


def test_none_to_zero_leaves_other_types_alone() -> None:
    with pytest.raises(ConfigError, match=r"InnerConfig\.rate: found None"):
        Config.from_dict(InnerConfig, {"rate": None}, none_to_zero_for_ints=True)


@pytest.mark.parametrize("value", ["False", "True", 1, 0, None, ""])
def test_only_true_and_false_are_booleans(value: Any) -> None:
    with pytest.raises(ConfigError, match="expected True or False"):
        Config.from_dict(bool, value)
    with pytest.raises(ConfigError, match=r"c\.flag: found .* expected True or False"):
        check_configs(c=OuterConfig(flag=value))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", True, "expected a whole number"),
        ("count", 1.0, "expected a whole number"),
        ("count", "1", "expected a whole number"),
        ("number", True, "expected a number"),
        ("number", "fast", "expected a number"),
        ("name", 3, "expected a text"),
        ("mode", "maen", "Did you mean 'mean'"),
        ("mode", True, "Known: 'sum', 'mean', 1"),
        ("mode", 1.0, "Known: 'sum', 'mean', 1"),
        ("inner", 3, "expected a InnerConfig or a mapping"),
        ("tools", "abc", "expected a list"),
        ("shape", [1, "2"], r"shape\[1\]: found '2'"),
        ("pair", ["a"], "expected 2 values"),
        ("by_number", {"x": 1.0}, "by_number: key: found 'x'"),
        ("by_name", {"x": 1}, r"by_name\.x: found 1"),
        ("by_name", [1], "expected a mapping"),
        ("color", "rad", "Did you mean 'red'"),
        ("mixed", [], "expected a number or a text"),
        ("point", {"x": 1.0}, "Point needs a value for y"),
    ],
)
def test_a_value_of_a_wrong_type_is_named_with_its_path(
    name: str, value: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Config.from_dict(OuterConfig, {name: value})
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"OuterConfig.{name}")


def test_from_dict_reads_annotations_that_are_no_configs() -> None:
    assert Config.from_dict(list[float], [1, 2.5]) == [1.0, 2.5]


def test_missing_required_fields_are_named_together() -> None:
    with pytest.raises(ConfigError, match="NeedyConfig needs a value for depth, size"):
        Config.from_dict(NeedyConfig, {})


def test_all_mistakes_are_reported_together() -> None:
    data = {"flag": "yes", "inner": {"rate": "fast", "setps": 1}, "tools": [{"every": None}]}
    with pytest.raises(ConfigError) as caught:
        Config.from_config_dict(OuterConfig, data)
    paths = [problem.split(": ")[0] for problem in caught.value.problems]
    assert paths == [
        "OuterConfig.flag",
        "OuterConfig.inner.rate",
        "OuterConfig.inner.setps",
        "OuterConfig.tools[0].every",
    ]


def test_get_returns_the_default_for_what_is_no_field() -> None:
    assert InnerConfig().get("steps") == 3
    assert InnerConfig().get("missing", 7) == 7


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        InnerConfig().steps = 4  # type: ignore[misc]


def test_check_configs_accepts_what_is_right() -> None:
    check_configs(a=OuterConfig(tools=[FileToolConfig()], number=3), b=None, c="no config")


def test_check_configs_lists_mistakes_of_all_configs_and_depths() -> None:
    wrong = OuterConfig(
        count=None,  # type: ignore[arg-type]
        inner=InnerConfig(steps=-1),
        tools=[FileToolConfig(every="x")],  # type: ignore[arg-type]
        anything={"deep": InnerConfig(steps=-2)},
    )
    with pytest.raises(ConfigError) as caught:
        check_configs(first=wrong, second=InnerConfig(steps=-3))
    assert sorted(problem.split(": ")[0] for problem in caught.value.problems) == [
        "first.anything.deep.steps",
        "first.count",
        "first.inner.steps",
        "first.tools[0].every",
        "second.steps",
    ]


def test_check_configs_says_each_mistake_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check_configs(c=OuterConfig(inner=InnerConfig(steps="x")))  # type: ignore[arg-type]
    assert len(caught.value.problems) == 1


def test_check_configs_does_not_take_a_mapping_for_a_config() -> None:
    with pytest.raises(ConfigError, match=r"c\.inner: found .* expected a InnerConfig\."):
        check_configs(c=OuterConfig(inner={"steps": 1}))  # type: ignore[arg-type]


def test_problems_is_not_asked_while_a_type_inside_is_wrong() -> None:
    @dataclass(frozen=True, kw_only=True)
    class SumConfig(Config):
        inner: InnerConfig

        def problems(self) -> list[str]:
            return ["inner: too much."] if self.inner.steps + 1 > 10 else []

    with pytest.raises(ConfigError, match=r"c\.inner\.steps: found 'x'"):
        check_configs(c=SumConfig(inner=InnerConfig(steps="x")))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"c\.inner: too much"):
        check_configs(c=SumConfig(inner=InnerConfig(steps=10)))


def test_data_that_are_nested_too_deep_are_an_error_of_ours() -> None:
    data: dict[str, Any] = {}
    for _ in range(5000):
        data = {"anything": data}
    with pytest.raises(ConfigError, match="nested too deep"):
        Config.from_dict(OuterConfig, data)
