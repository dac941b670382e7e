"""Does a non-finite step leave the state as it was, bit for bit, wherever it came from?"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from step_zoo import (
    Data,
    Net,
    assert_identical,
    counters,
    make_data,
    make_state,
    on_devices,
    squared_error,
)

from xtrainer.metrics import HostWindow, finish
from xtrainer.parallel import ParallelConfig
from xtrainer.state import GuardState, TrainState
from xtrainer.step import StepReport, StepSettings, make_train_step
from xtrainer.step.guard import all_finite, guard_step, report_of

MODEL = Net(batch_norm=True)
ADAM = optax.adamw(1e-2)
ROWS = 16
KEPT = ("params", "opt_state", "mutable_variables", "rng")


@jax.custom_jvp
def spoiled(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns ``x``; its gradient is multiplied by ``factor``."""
    return x


@spoiled.defjvp
def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return primals[0], tangents[0] * primals[1]


def spoilable_loss(
    params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True
) -> tuple[Any, Any]:
    bias = spoiled(params["Dense_1"]["bias"], batch["factor"].max())
    params = {**params, "Dense_1": {**params["Dense_1"], "bias": bias}}
    loss = squared_error(params, apply_fn, batch, rng, train).mean(-1) + batch["extra"]
    return loss, ({"one": batch["one"]}, {})


def good(rows: int = ROWS, seed: int = 0) -> Data:
    ones = np.ones(rows, np.float32)
    return {**make_data(rows, seed), "extra": 0 * ones, "factor": ones, "one": ones}


def bad(kind: str, value: float, rows: int = ROWS) -> Data:
    """Returns a batch that is bad in one entry only (the factor of a gradient in all)."""
    batch = jax.tree.map(np.copy, good(rows))
    if kind == "input":
        batch["x"][3, 1] = value
    elif kind == "loss":
        batch["extra"][5] = value
    else:
        batch["factor"][:] = value
    return batch


@functools.cache
def compiled(limit: int | None = 1, accumulate_steps: int = 1) -> Any:
    settings = StepSettings(nonfinite_limit=limit, accumulate_steps=accumulate_steps)
    return jax.jit(make_train_step(spoilable_loss, MODEL.apply, ADAM, settings))


@functools.cache
def after_one_step() -> TrainState:
    state, _, report = compiled()(make_state(MODEL, ADAM), good())
    assert counters(report) == StepReport(1, 0, 0, 0)
    return state


def assert_kept(state: TrainState, before: TrainState) -> None:
    for name in KEPT:
        assert_identical(getattr(state, name), getattr(before, name))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["input", "loss", "gradient"])
@pytest.mark.parametrize("accumulate_steps", [1, 4])
def test_a_nonfinite_step_leaves_the_state_bit_for_bit(
    kind: str, value: float, accumulate_steps: int
) -> None:
    before = after_one_step()
    state, _, report = compiled(1, accumulate_steps)(before, bad(kind, value))
    assert counters(report) == StepReport(step=1, skipped=1, consecutive=1, first=2)
    assert_kept(state, before)


@pytest.mark.parametrize("kind", ["input", "loss", "gradient"])
def test_a_nonfinite_first_step_leaves_the_fresh_state(kind: str) -> None:
    before = make_state(MODEL, ADAM)
    state, _, report = compiled()(before, bad(kind, np.nan))
    assert counters(report) == StepReport(step=0, skipped=1, consecutive=1, first=1)
    assert_kept(state, before)


def test_a_good_step_changes_everything_that_learns() -> None:
    before = make_state(MODEL, ADAM)
    after = after_one_step()
    for name in ("params", "mutable_variables"):
        old, new = jax.tree.leaves(getattr(before, name)), jax.tree.leaves(getattr(after, name))
        assert all((np.asarray(a) != np.asarray(b)).any() for a, b in zip(old, new, strict=True))
    assert int(optax.tree.get(after.opt_state, "count")) == 1


def test_batch_statistics_that_overflow_refuse_the_step() -> None:
    before = after_one_step()
    batch = {**good(), "x": good()["x"] * np.float32(1e25)}
    _, updates = MODEL.apply(
        {"params": before.params, **before.mutable_variables},
        batch["x"],
        train=True,
        mutable=["batch_stats"],
    )
    assert not all_finite(updates)
    state, _, report = compiled()(before, batch)
    assert StepReport.fetch(report).skipped == 1
    assert_kept(state, before)


def test_a_gradient_whose_square_overflows_refuses_the_step() -> None:
    # Finite itself, but Adam's second moment would be infinite for ever.
    before = after_one_step()
    state, _, report = compiled()(before, bad("gradient", 1e25))
    assert StepReport.fetch(report).skipped == 1
    assert_kept(state, before)


def test_an_update_that_is_not_finite_refuses_the_step() -> None:
    rate = optax.scale_by_schedule(lambda count: jnp.where(count == 1, jnp.nan, 1.0))
    optimizer = optax.chain(optax.adam(1e-2), rate)
    step = jax.jit(make_train_step(spoilable_loss, MODEL.apply, optimizer))
    before, _, _ = step(make_state(MODEL, optimizer), good())
    state, _, report = step(before, good())
    assert counters(report) == StepReport(1, 1, 1, 2)
    assert_kept(state, before)


@pytest.mark.parametrize("count", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_refuses_the_step(count: float) -> None:
    def loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
        value = squared_error(params, apply_fn, batch, rng, train).sum()
        return {"value": value, "count": batch["one"].max() * count}, ({}, {})

    before = make_state(Net(), ADAM)
    state, _, report = jax.jit(make_train_step(loss, Net().apply, ADAM))(before, good())
    assert StepReport.fetch(report).skipped == 1
    assert_kept(state, before)


def test_with_limit_1_later_good_steps_are_refused_too() -> None:
    before = after_one_step()
    state, _, _ = compiled()(before, bad("loss", np.nan))
    halted = state
    for seed in range(3):
        state, _, report = compiled()(state, good(seed=seed))
        assert counters(report) == StepReport(1, 1, 1, 2)
    assert_identical(state, halted)


def test_the_skip_policy_goes_on_after_a_refused_step() -> None:
    before = after_one_step()
    state, _, report = compiled(3)(before, bad("input", np.inf))
    assert counters(report) == StepReport(step=2, skipped=1, consecutive=1, first=2)
    assert_kept(state, before)
    state, _, report = compiled(3)(state, good(seed=1))
    assert counters(report) == StepReport(step=3, skipped=1, consecutive=0, first=0)
    # The key of a step is that of its number, so only the count of steps tells the two apart.
    same, _, _ = compiled(3)(before.replace(step=before.step + 1), good(seed=1))
    assert_kept(state, same)


def run_flags(flags: str, limit: int | None) -> list[tuple[int, ...]]:
    """Returns the report after each step, and 1 where it was accepted; ``x`` is not finite."""
    state = TrainState(
        step=jnp.int32(0),
        params={"w": jnp.float32(0.0)},
        opt_state=(),
        mutable_variables={},
        rng=jax.random.key(0),
        guard=GuardState.create(),
    )
    reports = []
    for flag in flags:
        poison = jnp.nan if flag == "x" else 1.0
        proposed = state.replace(params={"w": state.params["w"] + poison})
        before = state
        state, accepted = guard_step(state, proposed, all_finite(proposed.params), limit)
        report = report_of(before, state, jnp.ones(2, bool))
        reports.append((*counters(report)[:4], int(accepted)))
    assert state.params["w"] == sum(report[-1] for report in reports)
    return reports


@pytest.mark.parametrize(
    ("flags", "limit", "reports"),
    [
        ("..", 1, [(1, 0, 0, 0, 1), (2, 0, 0, 0, 1)]),
        (".x.x", 1, [(1, 0, 0, 0, 1), (1, 1, 1, 2, 0), (1, 1, 1, 2, 0), (1, 1, 1, 2, 0)]),
        ("x.", 1, [(0, 1, 1, 1, 0), (0, 1, 1, 1, 0)]),
        (
            "x.xx.",
            3,
            [(1, 1, 1, 1, 0), (2, 1, 0, 0, 1), (3, 2, 1, 3, 0), (4, 3, 2, 3, 0), (5, 3, 0, 0, 1)],
        ),
        (
            ".xxx..",
            3,
            [
                (1, 0, 0, 0, 1),
                (2, 1, 1, 2, 0),
                (3, 2, 2, 2, 0),
                (3, 3, 3, 2, 0),
                (3, 3, 3, 2, 0),
                (3, 3, 3, 2, 0),
            ],
        ),
        (
            "xxxx.",
            None,
            [(1, 1, 1, 1, 0), (2, 2, 2, 1, 0), (3, 3, 3, 1, 0), (4, 4, 4, 1, 0), (5, 4, 0, 0, 1)],
        ),
    ],
)
def test_the_report_counts_refused_steps_up_to_the_limit(
    flags: str, limit: int | None, reports: list[tuple[int, ...]]
) -> None:
    assert run_flags(flags, limit) == reports


@pytest.mark.parametrize(
    ("flags", "limit", "halted", "updates"),
    [
        ("...", 1, False, 3),
        ("..x", 1, True, 2),
        ("..x.", 1, True, 2),
        (".x.x.", 3, False, 3),
        (".x.xx", 3, False, 2),
        (".x.xxx", 3, True, 2),
        ("x", 1, True, 0),
        ("xxxx", None, False, 0),
    ],
)
def test_the_report_tells_whether_the_run_has_ended_and_how_many_updates_it_took(
    flags: str, limit: int | None, halted: bool, updates: int
) -> None:
    report = StepReport(*run_flags(flags, limit)[-1][:4])
    assert (report.halted, report.updates) == (halted, updates)


def test_without_a_limit_the_run_never_halts() -> None:
    *_, last = run_flags("x" * 30 + ".", None)
    assert last == (31, 30, 0, 0, 1)


def test_the_metrics_take_nothing_from_a_refused_step() -> None:
    step = compiled(None)
    state, window, _ = step(make_state(MODEL, ADAM), good())
    for batch in (bad("loss", np.nan), bad("input", np.inf), bad("gradient", np.nan)):
        refused, after, _ = step(state, batch, None, window)
        np.testing.assert_array_equal(after.packed, window.packed)
    _, window, _ = step(refused, good(seed=1), None, after)
    metrics = finish(HostWindow.fetch(window), ("mean", "sum", "max", "min", "std"))
    assert metrics["one_mean"] == 1.0
    assert metrics["one_sum"] == 2.0 * ROWS
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("fsdp", [1, 8])
@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_every_device_keeps_its_part_of_the_state(fsdp: int, accumulate_steps: int) -> None:
    config = ParallelConfig(data_axis_size=8 // fsdp, fsdp_axis_size=fsdp, fsdp_min_weight_size=0)
    model = Net(batch_norm=True, width=8)
    before, layout = on_devices(make_state(model, ADAM), config)
    settings = StepSettings(
        accumulate_steps=accumulate_steps,
        layout=layout,
        param_shardings=jax.tree.map(lambda x: x.sharding, before.params),
    )
    shardings = jax.tree.map(lambda x: x.sharding, before)
    step = jax.jit(
        make_train_step(spoilable_loss, model.apply, ADAM, settings),
        out_shardings=(shardings, None, None),
    )
    for kind, value in (("input", np.nan), ("loss", np.inf), ("gradient", np.inf)):
        batch = jax.device_put(bad(kind, value, 32), layout.sharding(32))
        state, _, report = step(before, batch)
        assert counters(report) == StepReport(0, 1, 1, 1)
        assert_shards_identical(state, before)


def assert_shards_identical(state: TrainState, before: TrainState) -> None:
    for name in ("params", "opt_state", "mutable_variables"):
        old, new = jax.tree.leaves(getattr(before, name)), jax.tree.leaves(getattr(state, name))
        for a, b in zip(old, new, strict=True):
            assert len(a.addressable_shards) == len(b.addressable_shards) == 8
            for x, y in zip(a.addressable_shards, b.addressable_shards, strict=True):
                assert (x.device, x.index) == (y.device, y.index)
                assert np.asarray(x.data).tobytes() == np.asarray(y.data).tobytes()


@pytest.mark.parametrize("bad_value", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_bad_number_in_a_tree_is_found(bad_value: float, dtype: Any) -> None:
    tree = {"a": jnp.ones((3, 3), dtype), "b": [jnp.arange(4)]}
    assert all_finite(tree)
    assert not all_finite({**tree, "a": tree["a"].at[2, 1].set(bad_value)})


@pytest.mark.parametrize(
    ("report", "halted", "updates"),
    [
        (StepReport(5, 0, 0, 0), False, 5),
        (StepReport(5, 2, 0, 0), False, 3),
        (StepReport(5, 2, 2, 4), False, 3),
        (StepReport(4, 1, 1, 5), True, 4),
        (StepReport(0, 1, 1, 1), True, 0),
        (StepReport(6, 4, 3, 5), True, 3),
    ],
)
def test_a_report_tells_updates_from_refused_steps(
    report: StepReport, halted: bool, updates: int
) -> None:
    assert (report.halted, report.updates) == (halted, updates)


@pytest.mark.parametrize("limit", [1, 3])
def test_the_updates_of_a_report_are_those_of_the_optimizer(limit: int) -> None:
    state = make_state(MODEL, ADAM)
    for seed, kind in enumerate(["", "input", "", "input", "input", "input", ""]):
        batch = bad(kind, np.nan) if kind else good(seed=seed)
        state, _, report = compiled(limit)(state, batch)
        assert StepReport.fetch(report).updates == int(optax.tree.get(state.opt_state, "count"))
