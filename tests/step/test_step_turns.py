"""Steps of several turns: are they the updates by hand, are they one step, and what is refused?"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import xtrainer as xt
from xtrainer.metrics import HostWindow, finish
from xtrainer.state import GuardState, TrainState
from xtrainer.step import PrecisionConfig, StepReport, StepSettings

GROUPS = (
    xt.ParamGroupConfig(name="first", params=("^first",)),
    xt.ParamGroupConfig(name="second", params=("^second",), lr_factor=3.0),
)
CONFIG = xt.OptimizerConfig(
    name="adam", scheduler=xt.SchedulerConfig(lr=0.1), groups=GROUPS, in_turns=True
)
OPTIMIZER = xt.build_optimizer(CONFIG).transform
DATA = {"x": np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)}


def first_loss(params: Any, apply_fn: Any, batch: Any, rng: Any, train: bool = True) -> Any:
    error = batch["x"] @ params["first"]["w"] - 1.0 + params["second"]["b"] * batch["x"][:, 0]
    return error**2, ({"error": error}, {})


def second_loss(params: Any, apply_fn: Any, batch: Any, rng: Any, train: bool = True) -> Any:
    gap = batch["x"] @ params["first"]["w"] * params["second"]["b"] - 2.0
    return gap**2, ({"gap": gap}, {})


LOSSES = {"first": first_loss, "second": second_loss}


def make_state(optimizer: Any = OPTIMIZER, guard: Any = None) -> TrainState:
    params = {"first": {"w": jnp.full(3, 0.5)}, "second": {"b": jnp.float32(0.3)}}
    return TrainState.create(params, optimizer, jax.random.key(0), guard=guard)


def step_of(losses: Any = LOSSES, **settings: Any) -> Any:
    return xt.make_turns_step(losses, GROUPS, None, OPTIMIZER, StepSettings(**settings))


@pytest.fixture(scope="module")
def step() -> Any:
    """Gives the compiled step of both losses."""
    return jax.jit(step_of())


def leaves(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_each_turn_is_the_update_of_its_own_optimizer_after_the_turn_before(step: Any) -> None:
    state = make_state()
    own = {"first": optax.adam(0.1), "second": optax.adam(0.1 * 3)}
    params = state.params
    states = {name: own[name].init(params[name]) for name in own}
    for _ in range(4):
        state, _, _ = step(state, DATA)
        for name, loss in LOSSES.items():
            mean = lambda part, n=name, f=loss: f({**params, n: part}, None, DATA, None)[0].mean()  # noqa: B023, E731
            updates, states[name] = own[name].update(jax.grad(mean)(params[name]), states[name])
            params = {**params, name: optax.apply_updates(params[name], updates)}
    for found, wanted in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_step_of_two_turns_counts_as_one_for_the_run_and_for_each_optimizer(step: Any) -> None:
    state, _, _ = step(make_state(), DATA)
    state, _, report = step(state, DATA)
    assert StepReport.fetch(report).updates == int(state.step) == 2
    counts = optax.tree_utils.tree_get_all_with_path(state.opt_state, "count")
    assert {int(count) for _, count in counts} == {2}


def test_what_the_turns_return_is_logged_with_the_sum_of_their_losses(step: Any) -> None:
    state = make_state()
    _, window, _ = step(state, DATA)
    found = finish(HostWindow.fetch(window))
    first, second = found["first_loss_mean"], found["second_loss_mean"]
    assert first == pytest.approx(float(first_loss(state.params, None, DATA, None)[0].mean()))
    assert found["loss_mean"] == pytest.approx(first + second)
    assert {"error_mean", "gap_mean", "grad_norm_mean", "param_norm_mean"} <= set(found)


def test_micro_batches_change_nothing(step: Any) -> None:
    whole, window, _ = step(make_state(), DATA)
    divided, other, _ = jax.jit(step_of(accumulate_steps=4))(make_state(), DATA)
    for one, same in zip(jax.tree.leaves(whole.params), jax.tree.leaves(divided.params)):  # noqa: B905
        np.testing.assert_allclose(one, same, rtol=1e-5)
    assert finish(HostWindow.fetch(window)) == pytest.approx(finish(HostWindow.fetch(other)))


def test_one_turn_of_all_parameters_is_the_plain_step() -> None:
    group = (xt.ParamGroupConfig(name="all", params=(".",)),)
    optimizer, _ = xt.build_optimizer(xt.OptimizerConfig(groups=group, in_turns=True))
    plain, _ = xt.build_optimizer(xt.OptimizerConfig())
    turns = xt.make_turns_step({"all": first_loss}, group, None, optimizer)
    state, _, report = jax.jit(turns)(make_state(optimizer), DATA)
    alone = jax.jit(xt.make_train_step(first_loss, None, plain))
    other, _, same = alone(make_state(plain), DATA)
    assert leaves(state.params) == leaves(other.params)
    assert report.tolist() == same.tolist()


@pytest.mark.parametrize("bad", ["first", "second"])
def test_a_turn_that_is_not_finite_refuses_the_whole_step(bad: str) -> None:
    def spoiled(params: Any, apply_fn: Any, batch: Any, rng: Any, train: bool = True) -> Any:
        loss, more = LOSSES[bad](params, apply_fn, batch, rng)
        return loss * batch["factor"], more

    step = jax.jit(step_of({**LOSSES, bad: spoiled}, nonfinite_limit=3))
    good = {**DATA, "factor": np.ones(8, np.float32)}
    before, window, _ = step(make_state(), good)
    after, same, report = step(before, {**good, "factor": np.full(8, np.inf, np.float32)}, None)
    assert leaves((after.params, after.opt_state)) == leaves((before.params, before.opt_state))
    assert StepReport.fetch(report).skipped == 1
    assert finish(HostWindow.fetch(same), missing="nan")["loss_mean"] != 0  # nothing was added
    assert float(np.asarray(same.packed)[:, 2].sum()) == 0
    assert float(np.asarray(window.packed)[0, 2]) == 8


@pytest.mark.parametrize("bad", ["first", "second"])
def test_a_gradient_that_overflows_in_one_turn_lowers_the_scale_of_all(bad: str) -> None:
    precision = PrecisionConfig(loss_scale="dynamic", compute_dtype="float16")

    def steep(params: Any, apply_fn: Any, batch: Any, rng: Any, train: bool = True) -> Any:
        loss, more = LOSSES[bad](params, apply_fn, batch, rng)
        return loss * jnp.float16(100.0), more  # finite, but not its gradient times 2**15

    step = jax.jit(step_of({**LOSSES, bad: steep}, precision=precision))
    start = make_state(guard=GuardState.create(20))
    state, _, _ = step(start, DATA)
    assert int(state.guard.scale_exponent) == 19
    assert int(state.guard.consecutive) == 0  # no failure
    assert leaves(state.params) == leaves(start.params)


def test_frozen_parameters_stay_as_they_are_in_every_turn() -> None:
    config = xt.OptimizerConfig(groups=GROUPS, in_turns=True, freeze=("first/w",))
    with pytest.raises(xt.ConfigError, match="'first' names are all frozen"):
        make_state(xt.build_optimizer(config).transform)
    rest = (xt.ParamGroupConfig(name="second", params=("^second",)),)
    config = xt.OptimizerConfig(groups=rest, in_turns=True, freeze=("first/w",))
    optimizer = xt.build_optimizer(config).transform
    settings = StepSettings(freeze=("first/w",))
    step = xt.make_turns_step({"second": second_loss}, rest, None, optimizer, settings)
    before = make_state(optimizer)
    state, _, _ = step(before, DATA)
    assert leaves(state.params["first"]) == leaves(before.params["first"])
    assert leaves(state.params["second"]) != leaves(before.params["second"])


def test_losses_and_groups_that_do_not_fit_are_told_together() -> None:
    with pytest.raises(xt.ConfigError) as caught:
        step_of({"frist": first_loss, "second": second_loss})
    first, second = caught.value.problems
    assert "'frist', which is no group" in first and "first" in first
    assert "none for the group 'first'" in second


def test_an_optimizer_that_moves_all_at_once_is_refused() -> None:
    config = xt.OptimizerConfig(groups=GROUPS)
    with pytest.raises(xt.ConfigError, match="in_turns=True"):
        step_of()(make_state(xt.build_optimizer(config).transform), DATA)


def test_parameters_without_a_turn_are_refused() -> None:
    groups = GROUPS[:1]
    optimizer, _ = xt.build_optimizer(xt.OptimizerConfig(groups=groups, in_turns=True))
    step = xt.make_turns_step({"first": first_loss}, groups, None, optimizer)
    with pytest.raises(xt.ConfigError, match="second/b"):
        step(make_state(optimizer), DATA)


def test_parameters_of_no_group_have_a_turn_called_rest() -> None:
    groups = GROUPS[:1]
    optimizer, _ = xt.build_optimizer(xt.OptimizerConfig(groups=groups, in_turns=True))
    losses = {"first": first_loss, "rest": second_loss}
    before = make_state(optimizer)
    state, _, _ = xt.make_turns_step(losses, groups, None, optimizer)(before, DATA)
    assert leaves(state.params["second"]) != leaves(before.params["second"])


def test_a_window_for_other_metrics_says_which_differ() -> None:
    _, window, _ = xt.make_train_step(first_loss, None, OPTIMIZER)(make_state(), DATA)
    with pytest.raises(xt.XTrainerError, match=r"differs from them in .*'first_loss', 'gap'"):
        step_of()(make_state(), DATA, None, window)
