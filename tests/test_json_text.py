"""Is a text of JSON taken as it was written, and refused where it cannot have been?"""

import json
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtrainer.json_text import MAX_BYTES, MAX_DIGITS, MAX_ITEMS, MAX_LEVELS, check_size, parse_json

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def nested(levels: int, kind: str) -> str:
    """Returns lists or objects inside an outermost one."""
    first, last = {"list": ("[", "]"), "object": ('{"a":', "}")}[kind]
    return first * levels + (first + "1" + last) + last * levels


@given(JSON)
@settings(deadline=None, max_examples=80)
def test_every_value_comes_back_from_text_and_from_bytes(value: Any) -> None:
    text = json.dumps(value, allow_nan=False)
    assert parse_json(text) == parse_json(text.encode()) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NaN", "found NaN, which is not JSON"),
        ('{"a": [-Infinity]}', "found -Infinity, which is not JSON"),
        ("[1e999]", "found 1e999, which is more than a float can be"),
        ("-" + "9" * 400 + ".5", "which is more than a float can be"),
        ('{"a": 1, "b": 2, "a": 1}', "the key 'a' is there twice"),
        ('[{"a": {"b": 1, "\\u0062": 2}}]', "the key 'b' is there twice"),
        ("1" * 5000, "a number of 5000 digits, more than 4300"),
        ('{"step": -' + "1" * 4301 + "}", "a number of 4302 digits"),
        ("[1, 2", "Expecting"),
        ("", "Expecting value"),
        ("1 2", "Extra data"),
        ("\ufeff1", "Expecting value"),
        (b'"\xff"', "can't decode"),
    ],
)
def test_what_cannot_have_been_written_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


@pytest.mark.parametrize("kind", ["list", "object"])
def test_only_so_many_levels_are_taken(kind: str) -> None:
    assert parse_json(nested(MAX_LEVELS, kind))
    for levels in (MAX_LEVELS + 1, 800, 10**5):
        with pytest.raises(ValueError, match=f"more than {MAX_LEVELS} levels"):
            parse_json(nested(levels, kind))


def test_brackets_in_a_text_are_no_levels() -> None:
    assert parse_json(json.dumps({"a": "[" * 500})) == {"a": "[" * 500}


def test_a_long_number_is_refused_though_python_was_told_to_take_any() -> None:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        assert parse_json("9" * MAX_DIGITS) == 10**MAX_DIGITS - 1
        with pytest.raises(ValueError, match="digits"):
            parse_json("9" * (MAX_DIGITS + 1))
    finally:
        sys.set_int_max_str_digits(limit)


def test_a_text_that_is_too_long_is_refused_before_it_is_read() -> None:
    check_size(b"a" * MAX_BYTES)
    with pytest.raises(ValueError, match=f"more than {MAX_BYTES} bytes"):
        parse_json(b'"' + b"a" * MAX_BYTES + b'"')
    check_size(b"," * MAX_ITEMS)
    with pytest.raises(ValueError, match=f"more than {MAX_ITEMS} items"):
        parse_json(b"[" * 2 + b"[]," * (MAX_ITEMS // 2) + b"[]]]")
