"""Which parameters the patterns choose."""

import pytest

from xtrainer.errors import ConfigError
from xtrainer.optim import OptimizerConfig, unmatched_patterns
from xtrainer.optim.masks import check_frozen, path_mask, pattern_problems

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


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            ("dens3", "norm"),
            r"optimizer\.freeze: the patterns \['dens3'\] name no parameter.*'dense/",
        ),
        (("dense", "norm"), r"optimizer\.freeze: \['dense', 'norm'\] name all 3 parameters"),
    ],
)
def test_frozen_patterns_that_cannot_be_meant_are_refused(patterns, message) -> None:
    with pytest.raises(ConfigError, match=message):
        check_frozen(patterns, PARAMS)


def test_frozen_patterns_that_leave_something_are_accepted() -> None:
    check_frozen(("*/bias", "norm"), PARAMS)
