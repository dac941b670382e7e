"""Does a scale of the loss change nothing but what float16 can hold, and an overflow nothing?"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import step_zoo
from step_zoo import Data, Net, assert_close, assert_identical, counters, make_data
from test_step_guard import bad, good, spoilable_loss

from xtrainer.errors import LossError, StepError
from xtrainer.metrics import HostWindow, finish
from xtrainer.state import GuardState, TrainState
from xtrainer.step import PrecisionConfig, StepReport, StepSettings, make_train_step
from xtrainer.step.guard import guard_step, report_of
from xtrainer.step.scaling import Overflow, scale_of_sum

MODEL = Net(batch_norm=True)
OPTIMIZERS = {"sgd": optax.sgd(0.1, momentum=0.9), "adam": optax.adamw(1e-2)}
KEPT = ("params", "opt_state", "mutable_variables", "rng")
DYNAMIC = PrecisionConfig(loss_scale="dynamic", loss_scale_growth_steps=3)
HALF = {"compute_dtype": "float16", "output_dtype": "float32"}


def settings_of(precision: PrecisionConfig, **kwargs: Any) -> StepSettings:
    return StepSettings(precision=precision, **kwargs)


def make_state(
    precision: PrecisionConfig, optimizer: Any, model: Any = MODEL, exponent: int | None = None
) -> TrainState:
    first = precision.first_exponent if exponent is None else exponent
    return step_zoo.make_state(model, optimizer).replace(guard=GuardState.create(first))


@functools.cache
def spoilable(precision: PrecisionConfig, limit: int | None = 1, steps: int = 1) -> Any:
    settings = settings_of(precision, nonfinite_limit=limit, accumulate_steps=steps)
    adam = OPTIMIZERS["adam"]
    return jax.jit(make_train_step(spoilable_loss, MODEL.apply, adam, settings))


def scale(state: TrainState) -> tuple[int, int]:
    """Returns the exponent of the scale and the good steps."""
    return int(state.guard.scale_exponent), int(state.guard.good_steps)


def assert_kept(state: TrainState, before: TrainState) -> None:
    for name in KEPT:
        assert_identical(getattr(state, name), getattr(before, name))


# In float32 a scale changes nothing.


def course(
    precision: PrecisionConfig,
    optimizer: str,
    loss: Any = step_zoo.row_weighted_loss,
    **kwargs: Any,
) -> tuple[TrainState, Any]:
    """Returns the state after three steps, and the metrics of the last.

    Without batch statistics, which XLA computes in another order where more is computed with them;
    and compiled as for a user, as there are other roundings where LLVM takes no pains.
    """
    transform, model = OPTIMIZERS[optimizer], Net()
    settings = settings_of(precision, **kwargs)
    step = jax.jit(
        make_train_step(loss, model.apply, transform, settings),
        compiler_options={"xla_backend_optimization_level": 3},
    )
    state, window = make_state(precision, transform, model), None
    for seed in range(3):
        state, window, _ = step(state, make_data(16, seed))
    return state, finish(HostWindow.fetch(window))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "accumulation",
    [{}, {"accumulate_steps": 4}, {"accumulate_steps": 4, "accumulate_scan": False}],
    ids=["whole", "scan", "loop"],
)
def test_in_float32_a_power_of_two_changes_no_bit(
    optimizer: str, accumulation: dict[str, Any]
) -> None:
    expected, metrics = course(PrecisionConfig(), optimizer, **accumulation)
    state, found = course(PrecisionConfig(loss_scale="dynamic"), optimizer, **accumulation)
    assert_kept(state, expected)
    assert found.pop("loss_scale") == 2.0**15
    assert found == metrics  # the loss and the norms are those without a scale


def test_a_static_power_of_two_changes_no_bit_and_another_number_roundings_only() -> None:
    expected, metrics = course(PrecisionConfig(), "sgd")
    state, found = course(PrecisionConfig(loss_scale=512.0), "sgd")
    assert_kept(state, expected)
    assert found == {**metrics, "loss_scale": 512.0}
    state, found = course(PrecisionConfig(loss_scale=1000.0), "sgd")
    assert_close(state.params, expected.params, rtol=1e-5)
    assert found == pytest.approx({**metrics, "loss_scale": 1000.0}, rel=1e-5)


@pytest.mark.parametrize("loss_scale", ["dynamic", 3.0])
def test_micro_batches_give_the_gradient_of_the_whole_batch(loss_scale: Any) -> None:
    precision, loss = PrecisionConfig(loss_scale=loss_scale), step_zoo.token_weighted_loss
    model = Net()
    params = []
    for count in (1, 2, 8):
        settings = settings_of(precision, accumulate_steps=count)
        step = jax.jit(make_train_step(loss, model.apply, optax.sgd(0.1), settings))
        state, _, _ = step(make_state(precision, optax.sgd(0.1), model), make_data(16))
        params.append(state.params)
    for other in params[1:]:
        assert_close(other, params[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("weight", "factor"),
    [(1, 8), (2, 4), (3, 4), (4, 2), (0.3, 32), (0, 8), (-1, 8), (np.nan, 8), (np.inf, 8)],
)
def test_the_mean_of_a_sum_is_scaled(weight: float, factor: float) -> None:
    assert float(scale_of_sum(jnp.float32(8), jnp.float32(weight))) == factor


def test_the_weight_is_not_differentiated() -> None:
    def scaled(x: jax.Array) -> jax.Array:
        return scale_of_sum(jnp.float32(8), x**2)

    assert float(jax.grad(scaled)(3.0)) == 0.0


# An overflow.


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("steps", [1, 4])
def test_an_overflow_halves_the_scale_and_leaves_all_else_bit_for_bit(
    value: float, steps: int
) -> None:
    step = spoilable(DYNAMIC, 1, steps)
    before, window, _ = step(make_state(DYNAMIC, OPTIMIZERS["adam"]), good())
    assert scale(before) == (15, 1)
    state, after, report = step(before, bad("gradient", value), None, window)
    assert counters(report) == StepReport(step=2, skipped=1, consecutive=0, first=0)
    assert scale(state) == (14, 0)
    assert_kept(state, before)
    np.testing.assert_array_equal(after.packed, window.packed)
    # The next step is what it would have been; its key is that of its number.
    state, _, report = step(state, good(seed=1))
    same, _, _ = step(before.replace(step=before.step + 1), good(seed=1))
    assert counters(report) == StepReport(3, 1, 0, 0)
    assert_kept(state, same)
    assert scale(state) == (14, 1)


@pytest.mark.parametrize(("kind", "value"), [("loss", np.nan), ("input", np.inf)])
def test_a_loss_that_is_not_finite_is_no_overflow(kind: str, value: float) -> None:
    step = spoilable(DYNAMIC)
    before, _, _ = step(make_state(DYNAMIC, OPTIMIZERS["adam"]), good())
    state, _, report = step(before, bad(kind, value))
    assert counters(report) == StepReport(step=1, skipped=1, consecutive=1, first=2)
    assert scale(state) == scale(before) == (15, 1)
    assert_kept(state, before)
    halted, _, report = step(state, bad("gradient", np.inf))  # the run has ended: nothing counts
    assert counters(report) == StepReport(step=1, skipped=1, consecutive=1, first=2)
    assert_identical(halted, state)


def test_a_finite_gradient_whose_square_overflows_is_no_overflow_of_the_scale() -> None:
    state, _, report = spoilable(DYNAMIC)(
        make_state(DYNAMIC, OPTIMIZERS["adam"]), bad("gradient", 1e25)
    )
    assert counters(report) == StepReport(step=0, skipped=1, consecutive=1, first=1)
    assert scale(state) == (15, 0)


def test_at_the_lowest_scale_an_overflow_is_a_step_like_any_other_that_is_not_finite() -> None:
    step, state = spoilable(DYNAMIC), make_state(DYNAMIC, OPTIMIZERS["adam"])
    found = []
    for _ in range(17):
        state, _, report = step(state, bad("gradient", np.inf))
        found.append((*counters(report)[:4], scale(state)[0]))
    assert found[:15] == [(n, n, 0, 0, 15 - n) for n in range(1, 16)]
    assert found[15:] == [(15, 16, 1, 16, 0)] * 2  # halted


def test_a_static_scale_overflows_like_any_other_step() -> None:
    precision = PrecisionConfig(loss_scale=8.0)
    before = make_state(precision, OPTIMIZERS["adam"])
    assert before.guard.counts.shape == (4,)
    state, _, report = spoilable(precision)(before, bad("gradient", np.inf))
    assert counters(report) == StepReport(step=0, skipped=1, consecutive=1, first=1)
    assert_kept(state, before)


def test_the_scale_doubles_after_enough_good_steps_up_to_its_bound() -> None:
    step, found = spoilable(DYNAMIC), []
    state = make_state(DYNAMIC, OPTIMIZERS["adam"], exponent=23)
    for seed in range(8):
        state, window, _ = step(state, good(seed=seed))
        found.append((finish(HostWindow.fetch(window))["loss_scale"] / 2**20, *scale(state)))
    assert found == [
        *[(8, 23, 1), (8, 23, 2), (8, 24, 0), (16, 24, 1), (16, 24, 2), (16, 24, 0)],
        *[(16, 24, 1), (16, 24, 2)],
    ]


def run_flags(flags: str, limit: int | None, exponent: int = 2) -> list[tuple[int, ...]]:
    """Returns report, exponent and good steps after each step; ``o`` overflows, ``x`` is bad."""
    state = TrainState.create({"w": jnp.float32(0)}, optax.sgd(1.0), jax.random.key(0))
    state = state.replace(guard=GuardState.create(exponent))
    reports = []
    for flag in flags:
        overflow = Overflow(jnp.bool_(flag == "o") & (state.guard.scale_exponent > 0), 2)
        before = state
        decide = (jnp.bool_(flag == "."), limit, None, None, overflow)
        state, _ = guard_step(state, state, *decide)
        report = report_of(before, state, jnp.ones(2, bool))
        reports.append((*counters(report)[:4], *scale(state)))
    return reports


@pytest.mark.parametrize(
    ("flags", "limit", "reports"),
    [
        (".o.", 1, [(1, 0, 0, 0, 2, 1), (2, 1, 0, 0, 1, 0), (3, 1, 0, 0, 1, 1)]),
        ("ox.", 1, [(1, 1, 0, 0, 1, 0), (1, 2, 1, 2, 1, 0), (1, 2, 1, 2, 1, 0)]),
        # An overflow ends a row of bad steps as a good one does: rows have no gaps.
        ("xxoxx", 3, [
            (1, 1, 1, 1, 2, 0), (2, 2, 2, 1, 2, 0), (3, 3, 0, 0, 1, 0), (4, 4, 1, 4, 1, 0),
            (5, 5, 2, 4, 1, 0),
        ]),
        # A bad step takes nothing from the good ones before it.
        (".x.", 2, [(1, 0, 0, 0, 2, 1), (2, 1, 1, 2, 2, 1), (3, 1, 0, 0, 3, 0)]),
        ("ooo.", 1, [(1, 1, 0, 0, 1, 0), (2, 2, 0, 0, 0, 0), (2, 3, 1, 3, 0, 0),
                     (2, 3, 1, 3, 0, 0)]),
        ("ooo.", None, [(1, 1, 0, 0, 1, 0), (2, 2, 0, 0, 0, 0), (3, 3, 1, 3, 0, 0),
                        (4, 3, 0, 0, 0, 1)]),
    ],
)  # fmt: skip
def test_the_guard_counts_overflows_as_skipped_and_not_as_failures(
    flags: str, limit: int | None, reports: list[tuple[int, ...]]
) -> None:
    assert run_flags(flags, limit) == reports


# float16.


def small_loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
    return step_zoo.squared_error(params, apply_fn, batch, rng, train).mean(-1) * 5e-8, ({}, {})


def long_loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
    """A mean over many tokens, as pairs of sums and weights."""
    loss = step_zoo.squared_error(params, apply_fn, batch, rng, train)
    return {"value": loss.sum() * 2.0**20, "count": loss.size * 2.0**20}, ({}, {})


def first_update(loss: Any, precision: PrecisionConfig) -> tuple[Any, StepReport]:
    """Returns by how much the first step of a large learning rate has changed the parameters."""
    model, optimizer = Net(), optax.sgd(1e7)
    step = jax.jit(make_train_step(loss, model.apply, optimizer, settings_of(precision)))
    before = make_state(precision, optimizer, model)
    state, _, report = step(before, make_data(16))
    change = jax.tree.map(lambda a, b: np.array(a) - np.array(b), state.params, before.params)
    return change, StepReport.fetch(report)


def test_float16_loses_small_gradients_without_a_scale_only() -> None:
    expected, _ = first_update(small_loss, PrecisionConfig())
    lost, _ = first_update(small_loss, PrecisionConfig(**HALF))
    for loss_scale in ("dynamic", 2.0**15):
        found, _ = first_update(small_loss, PrecisionConfig(**HALF, loss_scale=loss_scale))
        assert_close(found, expected, rtol=0.02)
    kernel = lambda tree: np.abs(tree["Dense_0"]["kernel"])  # noqa: E731
    assert (kernel(lost) == 0).mean() > 0.4
    assert (kernel(found) == 0).mean() == 0


def test_the_length_of_a_batch_does_not_overflow_a_scaled_loss() -> None:
    expected, _ = first_update(long_loss, PrecisionConfig())
    found, report = first_update(long_loss, PrecisionConfig(**HALF, loss_scale=1024.0))
    assert report.skipped == 0
    assert_close(found, expected, rtol=0.02)
    _, report = first_update(long_loss, PrecisionConfig(**HALF))
    assert report.skipped == 1


# What does not fit together.


def test_a_state_without_a_scale_is_an_error_that_says_how_to_make_one() -> None:
    state = step_zoo.make_state(MODEL, OPTIMIZERS["adam"])
    with pytest.raises(StepError, match=r"keeps no scale.*init_state\(\.\.\., precision=precision"):
        spoilable(DYNAMIC)(state, good())


def test_a_step_without_a_dynamic_scale_keeps_that_of_a_state() -> None:
    before = make_state(DYNAMIC, OPTIMIZERS["adam"])
    state, _, report = spoilable(PrecisionConfig())(before, good())
    assert counters(report) == StepReport(1, 0, 0, 0)
    assert scale(state) == (15, 0)


def test_a_metric_that_is_called_like_the_scale_is_an_error() -> None:
    def loss(*args: Any, **kwargs: Any) -> Any:
        value, _ = step_zoo.example_loss(*args, **kwargs)
        return value, ({"loss_scale": value}, {})

    state = make_state(DYNAMIC, OPTIMIZERS["adam"])
    step = make_train_step(loss, MODEL.apply, OPTIMIZERS["adam"], settings_of(DYNAMIC))
    with pytest.raises(LossError, match="loss_scale"):
        jax.eval_shape(step, state, make_data(4))


@pytest.mark.parametrize("loss_scale", [0.0, -2.0, float("nan"), float("inf"), 2.0**25, "static"])
def test_scales_that_cannot_be_are_told(loss_scale: Any) -> None:
    (problem,) = PrecisionConfig(loss_scale=loss_scale).problems()
    assert problem.startswith(f"loss_scale: found {loss_scale!r}, expected 'dynamic', None, or a ")


def test_good_steps_until_a_scale_grows_are_at_least_one() -> None:
    (problem,) = PrecisionConfig(loss_scale="dynamic", loss_scale_growth_steps=0).problems()
    assert problem == "loss_scale_growth_steps: found 0, expected a number >= 1."
