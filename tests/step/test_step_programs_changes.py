"""What is said of arguments that have changed since a program was compiled for them?"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from xtrainer.step.programs import Programs, describe_changes, spec_of


@pytest.mark.parametrize(
    ("now", "line"),
    [
        ({"x": np.zeros(3, np.float32)}, "x: shape (3,), before (4,)"),
        ({"x": np.zeros(4, np.int32)}, "x: dtype int32, before float32"),
        ({"x": jnp.zeros(4, jnp.bfloat16)}, "x: dtype bfloat16, before float32"),
        ({"y": np.zeros(4, np.float32)}, "x: is no more; y: is new"),
        ({"x": np.zeros(4, np.float32), "y": 1}, "y: is new"),
    ],
)
def test_each_change_is_a_line(now: Any, line: str) -> None:
    before = spec_of({"x": np.zeros(4, np.float32)})
    assert "; ".join(describe_changes(before, now)) == line


def test_a_weak_type_is_a_change() -> None:
    strong, weak = jnp.zeros((), jnp.int32), jax.jit(lambda: 3)()
    assert describe_changes(spec_of({"n": strong}), {"n": weak}) == [
        "n: weak_type True, before False"
    ]
    assert describe_changes(spec_of({"n": weak}), {"n": weak}) == []


def test_another_place_is_a_change_unless_it_is_the_same_under_another_name() -> None:
    mesh, x = zoo.devices(1), np.zeros(4, np.float32)
    rows = jax.NamedSharding(mesh, jax.P("dp"))
    one, same, other = (
        jax.device_put(x, place) for place in (*jax.devices()[:1], rows, jax.devices()[1])
    )
    assert describe_changes(spec_of({"x": one}), {"x": same}) == []
    assert describe_changes(spec_of({"x": one}), {"x": x}) == []  # a host array goes anywhere
    (line,) = describe_changes(spec_of({"x": one}), {"x": other})
    assert re.match(r"x: sharding .*id=1.*, before .*id=0", line)


def test_equal_leaves_in_other_containers_are_a_change() -> None:
    x = np.zeros(4, np.float32)
    (line,) = describe_changes(spec_of([x]), (x,))
    assert re.match(r"the containers are .*\(\*,\).*, before .*\[\*\]", line)


def test_a_long_report_is_cut_in_the_log_and_says_so() -> None:
    programs = Programs("grow")
    for rows in (1, 2):
        tree = {f"x{index:02}": np.zeros(rows, np.float32) for index in range(12)}
        programs.get(rows, jax.jit(lambda tree: tree), {"tree": tree})
    (report,) = programs.recompilations
    assert report.count("shape (2,), before (1,)") == 10
    assert report.endswith("and 2 more")


def test_an_error_of_a_program_whose_arguments_are_as_before_is_raised_as_it_is() -> None:
    programs, arguments = Programs("add"), {"x": np.zeros(2, np.float32)}
    programs.get("key", jax.jit(lambda x: x + 1), arguments)
    error = ValueError("planted")
    with pytest.raises(ValueError, match="planted") as info:
        programs.mend("key", jax.jit(lambda x: x + 1), arguments, error)
    assert info.value is error
    assert programs.recompilations == []
