"""Does every form a loss may have become the right sum and weight, and every other an error?"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from step_zoo import Net, example_loss, make_data, make_state, scalar_loss

from xtrainer.errors import LossError
from xtrainer.step import StepSettings, describe_loss
from xtrainer.step.loss import evaluate_loss, flatten_intermediates, reduce_term

MASK = jnp.array([True, True, True, False])
VALUES = np.array([1.0, 2.0, 4.0, 100.0], np.float32)
TOKEN_VALUES = np.arange(8, dtype=np.float32).reshape(4, 2)


@pytest.mark.parametrize(
    ("term", "total", "weight", "masked"),
    [
        (2.0, 6.0, 3.0, False),
        (np.float32(2.0), 6.0, 3.0, False),
        (VALUES, 7.0, 3.0, True),
        (VALUES > 1.5, 2.0, 3.0, True),
        (VALUES.astype(np.int32), 7.0, 3.0, True),
        (jnp.asarray(VALUES, jnp.bfloat16), 7.0, 3.0, True),
        (TOKEN_VALUES, 15.0, 6.0, True),
        ({"value": 10.0, "count": 4}, 10.0, 4.0, False),
        ({"value": VALUES}, 7.0, 3.0, True),
        ({"value": VALUES, "count": None}, 7.0, 3.0, True),
        ({"value": 5.0}, 15.0, 3.0, False),
        ({"value": VALUES, "count": np.array([1.0, 0.0, 0.5, 9.0])}, 3.0, 1.5, True),
        ({"value": TOKEN_VALUES, "count": TOKEN_VALUES > 2.0}, 12.0, 3.0, True),
        ({"value": TOKEN_VALUES, "count": np.array([1.0, 0.0, 2.0, 9.0])}, 19.0, 6.0, True),
        ({"value": 10.0, "count": 4, "log_modes": ["max"]}, 10.0, 4.0, False),
    ],
)
def test_a_term_is_a_weighted_sum_over_its_weight(
    term: Any, total: float, weight: float, masked: bool
) -> None:
    found = reduce_term("the loss", term, MASK)
    assert (float(found[0]), float(found[1]), found[2]) == (total, weight, masked)
    assert (found[0].dtype, found[1].dtype) == (jnp.float32, jnp.float32)
    assert found[0].shape == found[1].shape == ()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_without_weight_may_be_anything(bad: float) -> None:
    values = VALUES.copy()
    values[3] = bad
    assert reduce_term("the loss", values, MASK)[0] == 7.0
    values[1] = bad
    term = {"value": values, "count": np.array([1.0, 0.0, 0.5, 9.0])}
    assert reduce_term("the loss", term, MASK)[0] == 3.0


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (np.ones(3), r"the loss has the shape \(3,\) for a batch of 4 rows, expected a scalar or"),
        (np.ones((2, 4)), r"the shape \(2, 4\) for a batch of 4 rows.*first axis is 4"),
        (np.ones(1), r"the shape \(1,\) for a batch of 4 rows"),
        ({"value": np.ones(4), "count": 2.0}, r"value of shape \(4,\) and a count of shape \(\)"),
        ({"value": 1.0, "count": np.ones(4)}, r"value of shape \(\) and a count of shape \(4,\)"),
        (
            {"value": np.ones((4, 2)), "count": np.ones((4, 3))},
            r"value of shape \(4, 2\) and a count of shape \(4, 3\), expected two scalars",
        ),
        ({"value": np.ones(3), "count": np.ones(3)}, r"the shape \(3,\) for a batch of 4 rows"),
        ({"valeu": 1.0, "count": 1.0}, r"keys \['count', 'valeu'\].*Did you mean 'value'"),
        ({"count": 1.0}, r"found the keys \['count'\], expected 'value' and 'count'"),
        ({}, r"found the keys \[\], expected 'value' and 'count'"),
        ("text", "the loss is a str, expected an array"),
        (None, "the loss is a NoneType, expected an array"),
        (1.0 + 2.0j, "the loss has the dtype complex64, expected a real number"),
    ],
)
def test_another_form_is_an_error_that_says_what_was_found(term: Any, message: str) -> None:
    with pytest.raises(LossError, match=message):
        reduce_term("the loss", term, MASK)


def returned(output: Any, train: bool = True, **settings: Any) -> Any:
    """Returns what a step makes of a loss function that returns ``output``."""
    return evaluate_loss(
        lambda params, apply_fn, batch, rng, train: output,
        lambda variables: None,
        StepSettings(**settings),
        {},
        {"batch_stats": {"mean": jnp.zeros(2)}},
        {},
        MASK,
        jax.random.key(0),
        train,
    )


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            jnp.ones(4),
            r"returned an array of shape \(4,\), expected \(loss, \(metrics, mutable_var",
        ),
        ((1.0, {}, {}), r"returned a tuple of 3, expected \(loss, \(metrics"),
        ((1.0, {}), r"returned \(loss, a dict\), expected .*; use \{\} where there is nothing"),
        ((1.0, ({},)), r"returned \(loss, a tuple of 1\), expected"),
        ((1.0, ([1.0], {})), "are list and dict, expected two dictionaries"),
        ((1.0, ({}, 3)), "are dict and int, expected two dictionaries"),
        ((1.0, ({"accuracy": np.ones(3)}, {})), r"the metric 'accuracy' has the shape \(3,\)"),
        (
            (1.0, ({"accuracy": {"value": 1.0, "log_modes": ["meen"]}}, {})),
            "metric 'accuracy' asks for the log mode 'meen'. Did you mean 'mean'",
        ),
        (
            (1.0, ({}, {"ema": {"x": jnp.ones(2)}})),
            r"mutable collections \['ema'\], the state has \['batch_stats'\]. Collections are",
        ),
        (
            (1.0, ({}, {"batch_stats": {"mean": jnp.zeros(2, jnp.bfloat16)}})),
            r"'batch_stats/mean' is bfloat16\[2\] after the loss and float32\[2\] in the state",
        ),
        (
            (1.0, ({}, {"batch_stats": {"mean": jnp.zeros(3)}})),
            r"'batch_stats/mean' is float32\[3\] after the loss and float32\[2\] in the state",
        ),
        (
            (1.0, ({}, {"batch_stats": {}})),
            r"'batch_stats/mean' is nothing after the loss and float32\[2\] in the state",
        ),
        (
            (1.0, ({}, {"batch_stats": {"mean": jnp.zeros(2), "var": jnp.zeros(2)}})),
            r"'batch_stats/var' is float32\[2\] after the loss and nothing in the state",
        ),
    ],
)
def test_a_wrong_return_value_is_an_error(output: Any, message: str) -> None:
    with pytest.raises(LossError, match=message):
        returned(output)


@pytest.mark.parametrize("nothing", [None, {}])
def test_nothing_to_return_may_be_none_or_empty(nothing: Any) -> None:
    terms = returned((VALUES, (nothing, nothing)))
    assert terms.layout.names == ("loss",)
    assert (terms.value, terms.weight) == (7.0, 3.0)
    assert list(terms.mutable) == ["batch_stats"]


def test_returned_collections_replace_those_of_the_state() -> None:
    terms = returned((1.0, ({}, {"batch_stats": {"mean": jnp.ones(2)}})))
    np.testing.assert_array_equal(terms.mutable["batch_stats"]["mean"], [1.0, 1.0])


def test_an_evaluation_keeps_the_collections_of_the_state() -> None:
    terms = returned((1.0, ({}, {"batch_stats": {"mean": jnp.ones(2)}})), train=False)
    np.testing.assert_array_equal(terms.mutable["batch_stats"]["mean"], [0.0, 0.0])


def test_the_loss_comes_first_and_metrics_keep_their_order() -> None:
    terms = returned((VALUES, ({"z": 2.0, "a": {"value": 5.0, "count": 10.0}}, {})))
    assert terms.layout.names == ("loss", "z", "a")
    np.testing.assert_array_equal(terms.sums, [7.0, 6.0, 5.0])
    np.testing.assert_array_equal(terms.counts, [3.0, 3.0, 10.0])


def test_a_metric_of_the_name_loss_is_logged_instead_of_the_loss() -> None:
    terms = returned((VALUES, ({"loss": 2.0}, {})))
    assert terms.layout.names == ("loss",)
    assert (float(terms.value), terms.sums.tolist()) == (7.0, [6.0])


def test_log_modes_are_the_metrics_own_or_the_default() -> None:
    metrics = {
        "a": 1.0,
        "b": {"value": 1.0, "log_modes": ("max", "std")},
        "c": {"value": 1.0, "count": 2.0, "log_modes": "min"},
        "d": {"value": 1.0, "log_modes": []},
    }
    terms = returned((1.0, (metrics, {})), train_log_modes=("mean", "single"))
    default = ("mean", "single")
    assert terms.layout.modes == (default, default, ("max", "std"), ("min",), ())


def test_an_evaluation_logs_means_under_the_plain_name() -> None:
    metrics = {"b": {"value": 1.0, "log_modes": ("max", "std")}}
    assert returned((1.0, (metrics, {})), train=False).layout.modes == (("mean_nopostfix",),) * 2


@pytest.mark.parametrize(
    ("loss", "metric", "paddable"),
    [
        (VALUES, VALUES, True),
        (VALUES, {"value": VALUES, "count": VALUES}, True),
        (1.0, VALUES, False),
        (VALUES, 1.0, False),
        (VALUES, {"value": 1.0, "count": 2.0}, False),
    ],
)
def test_padding_is_allowed_where_all_terms_have_a_value_per_example(
    loss: Any, metric: Any, paddable: bool
) -> None:
    assert returned((loss, ({"metric": metric}, {}))).paddable is paddable


def test_a_loss_is_described_without_computing_it() -> None:
    state, batch = make_state(), make_data(8)
    shapes = jax.eval_shape(lambda tree: tree, (state, batch))
    terms = describe_loss(example_loss, Net().apply, StepSettings(), *shapes, 8, True)
    assert terms.layout.names == ("loss", "small")
    assert terms.paddable
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(terms))
    terms = describe_loss(scalar_loss, Net().apply, StepSettings(), *shapes, 8, False)
    assert (terms.paddable, terms.layout.modes) == (False, (("mean_nopostfix",),) * 2)


def test_a_sown_scalar_gives_one_metric_by_its_path() -> None:
    sown = {"block": {"dense": {"mean": (jnp.float32(3.0),)}}}
    assert flatten_intermediates(sown) == {"block/dense/mean": 3.0}


def test_several_calls_of_sow_are_numbered_from_0() -> None:
    sown = {"mean": (jnp.float32(3.0), jnp.float32(4.0), jnp.float32(5.0))}
    assert flatten_intermediates(sown) == {"mean/0": 3.0, "mean/1": 4.0, "mean/2": 5.0}


def test_a_sown_value_without_a_tuple_keeps_its_name() -> None:
    assert flatten_intermediates({"mean": jnp.float32(3.0)}) == {"mean": 3.0}


def test_a_sown_number_may_be_no_array() -> None:
    assert flatten_intermediates({"depth": (2.0,)}) == {"depth": 2.0}


def test_scanned_layers_give_one_metric_per_layer() -> None:
    sown = {"layers": {"mean": (jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]))}}
    assert flatten_intermediates(sown) == {
        "layers/mean/0_0": 1.0,
        "layers/mean/0_1": 2.0,
        "layers/mean/1_0": 3.0,
        "layers/mean/1_1": 4.0,
    }
    assert list(flatten_intermediates({"mean": (jnp.ones(2),)})) == ["mean_0", "mean_1"]


def test_a_sown_matrix_is_an_error_that_says_what_to_sow() -> None:
    message = r"intermediate 'dense/out/0' has the shape \(4, 2\), expected a scalar. Sow its mean"
    with pytest.raises(LossError, match=message):
        flatten_intermediates({"dense": {"out": (jnp.ones((4, 2)),)}})
