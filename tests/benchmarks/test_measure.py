import doctest
import json
from types import ModuleType

import numpy as np
import pytest

from benchmarks import conduct, machine, measure, report
from benchmarks.measure import Pairs, Row, Spread, interleave, slopes

VALUES = np.random.default_rng(0).lognormal(size=(2, 25))


@pytest.mark.parametrize("module", [conduct, machine, measure, report])
def test_the_examples_in_docstrings_are_right(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0


def test_a_spread_is_numpys_median_and_quartiles() -> None:
    for values in (VALUES[0], VALUES[0][:8], VALUES[0][:1]):
        spread = Spread.of(list(values))
        assert spread.median == pytest.approx(np.median(values))
        assert (spread.low, spread.high) == pytest.approx(tuple(np.quantile(values, (0.25, 0.75))))


def test_a_spread_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])


def test_differences_and_ratios_are_taken_in_pairs() -> None:
    bare, framework = VALUES
    row = Pairs(list(bare), list(framework)).row("mlp", "plain")
    assert row.added.median == pytest.approx(1e6 * np.median(framework - bare))
    assert row.added.median != pytest.approx(1e6 * (np.median(framework) - np.median(bare)))
    assert row.ratio.median == pytest.approx(np.median(framework / bare))
    assert row.ratio.high == pytest.approx(np.quantile(framework / bare, 0.75))
    assert row.bare.median == pytest.approx(1e6 * np.median(bare))
    assert (row.unit, row.repeats, row.who) == ("us/step", 25, "xtrainer")


def test_sides_of_different_length_are_an_error() -> None:
    with pytest.raises(ValueError, match="Found 2 values of the bare loop and 1"):
        Pairs([1.0, 2.0], [1.0]).row("mlp", "plain")


def test_a_row_survives_json() -> None:
    row = Pairs([1.0, 2.0], [3.0, 5.0]).row("mlp", "plain", note="said")
    empty = Row("mlp", "plain", note="not installed")
    for given in (row, empty):
        assert Row.from_dict(json.loads(json.dumps(given.to_dict()))) == given


def test_sides_are_run_in_turn_and_warm_ups_are_left_out() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    pairs = interleave(lambda: side("A"), lambda: side("B"), repeats=3, warm_up=1)
    assert order == ["A", "B", "B", "A", "A", "B", "B", "A"]
    assert pairs == Pairs([4.0, 5.0, 8.0], [3.0, 6.0, 7.0])


def test_a_slope_leaves_out_what_is_spent_once() -> None:
    each, once = 3.0, np.asarray([10.0, 20.0])
    found = slopes(list(once + 5 * each), list(once + 25 * each), more=20)
    assert found == pytest.approx([each, each])
