"""Does the schema of a config take what the config writes, and refuse what it cannot read?"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec

import xtrainer as xt
from xtrainer.config import Config
from xtrainer.config.base import config_classes
from xtrainer.config.schema import DIALECT, descriptions
from xtrainer.types import JSON

TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "null": type(None),
}
SAID = {"$schema", "$defs", "title", "description", "default", "items"}


def fits(value: JSON, schema: dict[str, JSON], root: dict[str, JSON]) -> bool:
    """Says whether a value fits a schema, by the words that this project's schemas use."""
    items = value if isinstance(value, list) else []
    keys = value if isinstance(value, dict) else {}
    known = schema.get("properties", {})
    checks: dict[str, Callable[[Any], bool]] = {
        "$ref": lambda ref: fits(value, root["$defs"][ref.split("/")[-1]], root),
        "anyOf": lambda options: any(fits(value, option, root) for option in options),
        "const": lambda const: value == const,
        "enum": lambda options: any(value == o and type(value) is type(o) for o in options),
        "type": lambda kind: (
            isinstance(value, TYPES[kind]) and (kind == "boolean") >= isinstance(value, bool)
        ),
        "required": lambda names: not isinstance(value, dict) or set(names) <= keys.keys(),
        "properties": lambda fields: all(
            fits(keys[k], fields[k], root) for k in keys if k in fields
        ),
        "additionalProperties": lambda other: all(
            other is not False and fits(keys[k], other, root) for k in keys if k not in known
        ),
        "propertyNames": lambda names: all(fits(key, names, root) for key in keys),
        "pattern": lambda pattern: re.search(pattern, value) is not None,
        "minProperties": lambda least: not isinstance(value, dict) or len(keys) >= least,
        "maxProperties": lambda most: len(keys) <= most,
        "prefixItems": lambda each: all(map(lambda v, s: fits(v, s, root), items, each)),
        "minItems": lambda least: not isinstance(value, list) or len(items) >= least,
        "maxItems": lambda most: len(items) <= most,
    }
    for word, said in schema.items():
        if word == "items":
            if not all(fits(item, said, root) for item in items):
                return False
        elif word not in SAID and not checks[word](said):  # a word not listed is an error here
            return False
    return True


def takes(config_class: type[Config], data: JSON) -> bool:
    schema = config_class.schema()
    return fits(json.loads(json.dumps(data)), schema, schema)


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True, kw_only=True)
class ShapeConfig(Config):
    """A shape.

    More about it.
    """

    size: float = 1.0
    """Length of
    a side."""


@dataclass(frozen=True, kw_only=True)
class SquareConfig(ShapeConfig):
    turned: bool = False
    parent: ShapeConfig | None = None


@dataclass(frozen=True, kw_only=True)
class MixedConfig(Config):
    needed: int
    colour: Colour = Colour.RED
    path: Path | None = None
    pair: tuple[int, str] = (1, "a")
    rows: tuple[tuple[int, ...], ...] = ()
    limit: float | Literal["none"] = math.inf
    either: str | tuple[tuple[int, float], ...] = "x"
    by_step: Mapping[int, float] = field(default_factory=dict)
    by_pair: dict[tuple[int, int], str] = field(default_factory=dict)
    shapes: list[ShapeConfig] = field(default_factory=list)
    spec: PartitionSpec | None = None
    model: type | Callable[..., Any] | None = None
    tx: optax.GradientTransformation | None = None
    extra: Any = None


MIXED = [
    MixedConfig(needed=1),
    MixedConfig(needed=1, path=Path("a"), limit="none", either=((1, math.inf),)),
    MixedConfig(needed=1, limit=math.nan, by_step={-3: math.inf}, by_pair={(1, 2): "a"}),
    MixedConfig(needed=1, shapes=[ShapeConfig(), SquareConfig(parent=SquareConfig())]),
    MixedConfig(needed=1, spec=PartitionSpec("dp", None), model=dict, rows=((1,), ())),
    MixedConfig(needed=1, tx=optax.sgd(0.1), extra={"a": (1, jnp.float32)}, pair=(2, "b")),
]


@pytest.mark.parametrize("config", MIXED, ids=range(len(MIXED)))
def test_what_a_config_writes_fits_its_schema(config: MixedConfig) -> None:
    assert takes(MixedConfig, config.to_dict())


@pytest.mark.parametrize(
    "changed",
    [
        {"neded": 1},
        {"needed": "1"},
        {"needed": True},
        {"needed": None},
        {"class_name": "ShapeConfig"},
        {"colour": "blue"},
        {"pair": [1]},
        {"pair": ["a", 1]},
        {"rows": [[1, "a"]]},
        {"limit": "many"},
        {"either": 3},
        {"by_step": {"first": 1.0}},
        {"shapes": [{"size": 1.0, "turned": True}]},
        {"shapes": [{"class_name": "MixedConfig", "needed": 1}]},
        {"shapes": [{"class_name": "SquareConfig", "size": "large"}]},
        {"tx": "optax.sgd"},
        {"tx": {"$eval": "1"}},
        {"model": 3},
    ],
    ids=str,
)
def test_what_a_config_cannot_read_does_not_fit(changed: dict[str, JSON]) -> None:
    assert not takes(MixedConfig, {**MIXED[0].to_dict(), **changed})


def test_a_field_without_a_default_is_required() -> None:
    assert MixedConfig.schema()["required"] == ["needed"]
    assert not takes(MixedConfig, {})
    assert takes(MixedConfig, {"needed": 1})


def test_a_field_is_described_with_its_default() -> None:
    schema = SquareConfig.schema()
    size = schema["properties"]["size"]
    assert size["description"] == "Length of a side." and size["default"] == 1.0
    assert schema["properties"]["turned"] == {"type": "boolean", "default": False}
    assert schema["properties"]["class_name"] == {"const": "SquareConfig"}
    assert schema["$defs"]["ShapeConfig"]["description"] == "A shape."
    assert "description" not in schema and schema["$schema"] == DIALECT


def test_a_class_without_a_source_has_no_descriptions() -> None:
    made = type("MadeConfig", (Config,), {"__annotations__": {"a": int}, "a": 1})
    made = dataclass(frozen=True, kw_only=True)(made)
    assert descriptions(made) == {}
    assert made.schema()["properties"]["a"] == {"type": "integer", "default": 1}


def everything() -> Sequence[type[Config]]:
    """Returns every config class of xtrainer."""
    for name in xt.__all__:
        getattr(xt, name)
    own = [c for c in config_classes().values() if c.__module__.startswith("xtrainer.")]
    return sorted(own, key=lambda c: c.__name__)


@pytest.mark.parametrize("config_class", everything(), ids=lambda c: c.__name__)
def test_every_config_has_a_schema_that_takes_its_defaults(config_class: type[Config]) -> None:
    schema = config_class.schema()
    assert json.loads(json.dumps(schema)) == schema
    if schema["required"]:
        return
    data = config_class().to_dict()
    assert fits(json.loads(json.dumps(data)), schema, schema)
    assert not fits({**data, "wdith": 1}, schema, schema)
    for name, said in schema["properties"].items():
        assert name == "class_name" or said["default"] == data[name]
        assert name == "class_name" or said["description"]


def test_a_whole_trainer_fits_the_schema_and_a_misspelt_key_in_it_does_not() -> None:
    config = xt.TrainerConfig(
        callbacks=[xt.ModelCheckpointConfig(monitor="loss"), xt.EarlyStoppingConfig(monitor="a")],
        logger=xt.LoggerConfig(log_tools=[xt.FileLoggerConfig()]),
        precision=xt.PrecisionConfig(loss_scale="dynamic"),
    )
    data = config.to_dict()
    assert takes(xt.TrainerConfig, data)
    data["callbacks"][0]["moniter"] = "loss"
    assert not takes(xt.TrainerConfig, data)
