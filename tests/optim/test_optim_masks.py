"""Which parameters the patterns choose."""

import pytest

from xtrainer.optim import OptimizerConfig, unmatched_patterns
from xtrainer.optim.masks import path_mask, pattern_problems

PARAMS = {"dense": {"kernel": 1.0, "bias": 2.0}, "norm": {"scale": 3.0}}


@pytest.mark.parametrize(
    ("include", "exclude", "chosen"),
    [
        (None, None, {"dense/kernel", "dense/bias", "norm/scale"}),
        (None, (r"bias|scale",), {"dense/kernel"}),
        (("dense",), None, {"dense/kernel", "dense/bias"}),
        (("dense",), ("*/bias",), {"dense/kernel"}),
        (("^kernel",), None, set()),
        ((), None, set()),
        (None, (), {"dense/kernel", "dense/bias", "norm/scale"}),
    ],
)
def test_patterns_choose_paths(include, exclude, chosen) -> None:
    mask = path_mask(include, exclude)(PARAMS)
    assert mask == {
        room: {name: f"{room}/{name}" in chosen for name in leaves}
        for room, leaves in PARAMS.items()
    }


def test_unmatched_patterns_are_found_on_both_sides() -> None:
    config = OptimizerConfig(
        weight_decay_include=("dense", "dens3"), weight_decay_exclude=("bais", "*/scale")
    )
    assert unmatched_patterns(config, PARAMS) == ["dens3", "bais"]


def test_a_pattern_that_cannot_be_read_is_a_problem() -> None:
    assert pattern_problems("weight_decay_include", ["(bias", "*/bias", "bias"]) == [
        "weight_decay_include: found '(bias', expected a regular expression "
        "(missing ), unterminated subpattern at position 0)."
    ]
