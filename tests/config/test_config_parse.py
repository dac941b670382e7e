"""Is a value read as its annotation says, and never run?"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pytest

from xtrainer.config.base import Config, config_classes
from xtrainer.config.parse import ParseOptions, Parser


def read(hint: Any, value: Any, **options: Any) -> tuple[Any, list[str]]:
    parser = Parser(Config, config_classes(), ParseOptions(**options))
    return parser.read(hint, value, "x"), parser.problems


class Speaks(Protocol):
    def speak(self) -> str: ...


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (int | float, 3),
        (float | int, 3),
        (float | str, "inf"),
        (str | bool, True),
        (list[int] | tuple[int, ...], (1, 2)),
        (Sequence[int], (1, 2)),
        (Sequence[int], [1, 2]),
        (Mapping[str, int], {"a": 1}),
        (Callable[[int], int] | None, abs),
        (Callable[[int], int] | None, None),
        (type[Any], dict),
        (set[int], {1}),
        (object, 3),
        (Speaks, 3),
    ],
)
def test_a_value_that_fits_comes_back_with_its_type(hint: Any, value: Any) -> None:
    result, problems = read(hint, value)
    assert (result, type(result), problems) == (value, type(value), [])


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (float, 3, 3.0),
        (float, "-inf", float("-inf")),
        (int, np.int32(4), 4),
        (tuple[int, ...], [1, 2], (1, 2)),
        (dict[int, str], {"-3": "a"}, {-3: "a"}),
    ],
)
def test_plain_data_is_converted(hint: Any, value: Any, expected: Any) -> None:
    result, problems = read(hint, value)
    assert (result, type(result), problems) == (expected, type(expected), [])


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (float, "-inf"),
        (int, "3"),
        (Config, {}),
        (type[Any], "some_model"),
        (dict[int, str], {"3": ""}),
    ],
)
def test_without_conversion_only_the_value_itself_fits(hint: Any, value: Any) -> None:
    assert len(read(hint, value, convert=False)[1]) == 1


@pytest.mark.parametrize("hint", [set[int], list[int], type[Any], Callable[..., Any]])
def test_a_container_hint_is_checked(hint: Any) -> None:
    assert len(read(hint, 3)[1]) == 1


def test_text_is_never_evaluated() -> None:
    text = "__import__('os').getcwd()"
    assert read(Any, {"a": [text]})[0] == {"a": [text]}


def test_a_mapping_in_a_union_tells_the_mistake_inside() -> None:
    _, problems = read(int | Config | None, {"nothing": 1})
    assert problems == ["x.nothing: Config has no such field. Known names: (none)."]
