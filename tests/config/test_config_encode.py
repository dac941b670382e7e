"""Is what JSON lacks marked, and what looks like a mark kept apart from one?"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from jax.sharding import PartitionSpec

from xtrainer.config import Config, check_configs
from xtrainer.config.encode import decode, mark_of, only, to_json
from xtrainer.errors import ConfigError

if TYPE_CHECKING:
    from decimal import Decimal


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ((1, 2), tuple[int, ...], [1, 2]),
        ((1, 2), tuple[int, ...] | None, [1, 2]),
        ((1, 2), Any, {"$tuple": [1, 2]}),
        (float("inf"), float, "inf"),
        (float("inf"), Any, {"$float": "inf"}),
        ({"a": 1}, Any, {"a": 1}),
        ({3: 1}, dict[int, int], {"3": 1}),
        ({3: 1}, Any, {"$pairs": [[3, 1]]}),
        ({"$tuple": [1]}, Any, {"$pairs": [["$tuple", [1]]]}),
        (PartitionSpec(("a", "b"), None), Any, {"$spec": [["a", "b"], None]}),
        (len, Any, {"not_saved": "len"}),
    ],
)
def test_a_value_is_plain_where_its_annotation_tells(value: Any, hint: Any, expected: Any) -> None:
    assert to_json(value, hint) == expected


def test_a_mapping_of_more_keys_is_no_mark() -> None:
    assert mark_of({"$tuple": [1], "b": 2}) is None


def test_decode_refuses_what_is_never_written() -> None:
    with pytest.raises(ValueError, match="is not what"):
        decode("$float", "__import__('os')")


def test_only_finds_nothing_between_two_options() -> None:
    assert only(int | str | None) is Any


@dataclass(frozen=True, kw_only=True)
class HalfKnownConfig(Config):
    amount: "Decimal | None" = None
    count: "int" = 0


def test_a_name_only_a_type_checker_knows_leaves_the_other_fields_checked() -> None:
    with pytest.raises(ConfigError, match=r"c\.count: found 'x'"):
        check_configs(c=HalfKnownConfig(count="x"))  # type: ignore[arg-type]
