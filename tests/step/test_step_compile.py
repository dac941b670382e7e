"""Is a step compiled once, with the state donated and laid out as before?"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from step_zoo import (
    Data,
    Net,
    assert_close,
    assert_identical,
    counters,
    example_loss,
    host,
    make_data,
    make_state,
    on_devices,
    scalar_loss,
    squared_error,
)

from xtrainer.errors import BatchError
from xtrainer.metrics import HostWindow, finish
from xtrainer.parallel import BatchLayout, ParallelConfig, copy_tree
from xtrainer.state import TrainState
from xtrainer.step import (
    EvalExecutor,
    PlacedBatch,
    StepReport,
    StepSettings,
    TrainExecutor,
    describe_loss,
    make_eval_step,
    make_train_step,
    train_layout,
)
from xtrainer.step.compile import micro_batches

ADAM, SGD = optax.adam(1e-2), optax.sgd(0.1)
MODEL = Net(width=8)
FSDP = ParallelConfig(data_axis_size=2, fsdp_axis_size=4, fsdp_min_weight_size=0)
ALONE = ParallelConfig(data_axis_size=1)
ROWS = 32
COMPILE = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def compilations() -> Iterator[list[str]]:
    """The names of the functions that this module has compiled so far."""
    names: list[str] = []

    def listen(event: str, duration: float, **metadata: Any) -> None:
        if event == COMPILE:
            names.append(str(metadata.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@dataclass(frozen=True)
class Parts:
    """An executor with what it runs on."""

    executor: Any
    start: TrainState
    layout: BatchLayout

    def state(self) -> TrainState:
        """Returns the first state in fresh buffers."""
        return copy_tree(self.start, jax.tree.map(lambda x: x.sharding, self.start))

    def batch(self, rows: int = ROWS, seed: int = 0, examples: int | None = None) -> PlacedBatch:
        """Returns a batch on the devices; rows behind ``examples`` are padding."""
        examples = rows if examples is None else examples
        host_batch = (make_data(rows, seed), np.arange(rows) < examples)
        data, mask = jax.device_put(host_batch, self.layout.sharding(rows))
        return PlacedBatch(data, mask, rows, examples)


def train_parts(
    config: ParallelConfig = FSDP,
    loss: Any = example_loss,
    pieces: int = 1,
    optimizer: optax.GradientTransformation = ADAM,
    **options: Any,
) -> Parts:
    state, layout = on_devices(make_state(MODEL, optimizer), config)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    settings = StepSettings(
        layout=layout, param_shardings=shardings.params, accumulate_steps=pieces
    )
    terms = describe_loss(loss, MODEL.apply, settings, state, make_data(ROWS), ROWS, True)
    executor = TrainExecutor(
        lambda chosen: make_train_step(loss, MODEL.apply, optimizer, chosen),
        settings,
        train_layout(terms.layout, state.params, settings),
        shardings,
        layout,
        **options,
    )
    return Parts(executor, state, layout)


def eval_parts(config: ParallelConfig = FSDP, loss: Any = scalar_loss, **options: Any) -> Parts:
    state, layout = on_devices(make_state(MODEL, ADAM), config)
    settings = StepSettings(layout=layout)
    terms = describe_loss(loss, MODEL.apply, settings, state, make_data(ROWS), ROWS, False)
    step = make_eval_step(loss, MODEL.apply, settings)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    return Parts(EvalExecutor(step, terms.layout, shardings, layout, **options), state, layout)


@pytest.fixture(scope="module")
def train(compilations: list[str]) -> Parts:
    """The training step that most tests share; compiled by the first of them."""
    return train_parts(pieces=2)


@pytest.fixture(scope="module")
def evaluation(compilations: list[str]) -> Parts:
    """The evaluation step that most tests share."""
    return eval_parts()


def leaves(tree: Any) -> list[jax.Array]:
    return jax.tree.leaves(tree)


def test_many_training_steps_are_compiled_once(train: Parts, compilations: list[str]) -> None:
    state, window = train.state(), train.executor.new_window()
    for index in range(6):
        if index == 3:
            window = train.executor.new_window()
        state, window, report = train.executor(state, train.batch(seed=index), window)
    assert compilations.count("jit(train_step)") == 1
    assert counters(report) == StepReport(6, 0, 0, 0)


def test_a_padded_batch_is_no_new_compilation(train: Parts, compilations: list[str]) -> None:
    state, window = train.state(), train.executor.new_window()
    for examples in (ROWS, 20):
        state, window, _ = train.executor(state, train.batch(examples=examples), window)
    assert compilations.count("jit(train_step)") == 1


def test_steps_do_what_the_pure_function_does(train: Parts) -> None:
    state, window = train.state(), train.executor.new_window()
    pure = jax.jit(make_train_step(example_loss, MODEL.apply, ADAM))
    expected, other = make_state(MODEL, ADAM), None
    for index in range(3):
        state, window, _ = train.executor(state, train.batch(seed=index, examples=29), window)
        mask = np.arange(ROWS) < 29
        expected, other, _ = pure(expected, make_data(ROWS, index), mask, other)
    assert_close(state.params, expected.params, 0.0, atol=2e-6)
    metrics, others = (finish(HostWindow.fetch(w)) for w in (window, other))  # type: ignore[arg-type]
    assert metrics == pytest.approx(others, rel=1e-5)


def test_state_and_window_are_donated_and_keep_their_layout(train: Parts) -> None:
    state, window = train.state(), train.executor.new_window()
    new_state, new_window, _ = train.executor(state, train.batch(), window)
    assert all(leaf.is_deleted() for leaf in leaves((state, window)))
    for old, new in zip(leaves(state), leaves(new_state), strict=True):
        assert old.sharding == new.sharding
    assert new_window.packed.sharding == train.layout.replicated


def test_all_bytes_of_the_state_are_reused(train: Parts) -> None:
    state, window, batch = train.state(), train.executor.new_window(), train.batch()
    memory = train.executor.lower(state, batch.data).compile().memory_analysis()
    data = [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in leaves((state, window))
    ]
    per_device = sum(leaf.addressable_shards[0].data.nbytes for leaf in data)
    assert memory.alias_size_in_bytes >= per_device


def test_a_state_that_is_not_donated_can_be_used_again() -> None:
    parts = train_parts(donate_state=False)
    state = parts.state()
    before = host(state)
    windows = [parts.executor.new_window() for _ in range(2)]
    results = [parts.executor(state, parts.batch(), window) for window in windows]
    assert_identical(state, jax.tree.map(jnp.asarray, before).replace(rng=state.rng))
    assert_identical(results[0], results[1])
    assert all(leaf.is_deleted() for leaf in leaves(windows))


def test_a_new_window_is_empty_after_an_old_one_was_donated(train: Parts) -> None:
    empty = host(train.executor.new_window())
    state, window = train.state(), train.executor.new_window()
    for _ in range(2):
        state, window, _ = train.executor(state, train.batch(), window)
    fresh = train.executor.new_window()
    assert finish(HostWindow.fetch(fresh)) == {}
    np.testing.assert_array_equal(np.asarray(fresh.packed), empty.packed)
    assert int(fresh.calls) == 0


def test_a_step_needs_no_implicit_transfer(train: Parts, evaluation: Parts) -> None:
    for parts in (train, evaluation):
        batches = [parts.batch(seed=index) for index in range(2)]
        state, window = parts.state(), parts.executor.new_window()
        with jax.transfer_guard("disallow"):
            for batch in batches:
                results = parts.executor(state, batch, window)
                state, window = results[:2] if parts is train else (state, results[0])


def watched_loss(seen: list[bool]) -> Any:
    """Returns a loss that notes whether it can look at its numbers, as one does in debugging."""

    def loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
        value = squared_error(params, apply_fn, batch, rng, train).mean(-1)
        try:
            seen.append(bool((value >= 0).all()) and bool(batch["x"].max() > 0))
        except jax.errors.ConcretizationTypeError:
            seen.append(False)
        return value, ({"small": value < 1}, {})

    return loss


@pytest.mark.parametrize(("debug", "pieces"), [(True, 2), (False, 1)])
def test_only_a_debugged_training_step_sees_numbers(debug: bool, pieces: int) -> None:
    seen: list[bool] = []
    parts = train_parts(ALONE, watched_loss(seen), pieces, SGD, debug=debug)
    seen.clear()
    state, window, report = parts.executor(
        parts.state(), parts.batch(), parts.executor.new_window()
    )
    assert seen and set(seen) == {debug}
    assert StepReport.fetch(report).step == 1
    pure = jax.jit(make_train_step(example_loss, MODEL.apply, SGD))
    expected, other, _ = pure(make_state(MODEL, SGD), make_data(ROWS))
    assert_close(state.params, expected.params, 0.0, atol=2e-6)
    metrics, others = (finish(HostWindow.fetch(w)) for w in (window, other))
    assert metrics == pytest.approx(others, rel=1e-5)


@pytest.mark.parametrize("debug", [True, False])
def test_only_a_debugged_evaluation_step_sees_numbers(debug: bool) -> None:
    seen: list[bool] = []
    parts = eval_parts(ALONE, watched_loss(seen), debug=debug)
    seen.clear()
    parts.executor(parts.start, parts.batch(), parts.executor.new_window())
    assert seen and set(seen) == {debug}


def test_a_remainder_is_compiled_once_more_and_gives_the_gradient_of_its_rows(
    compilations: list[str],
) -> None:
    before = compilations.count("jit(train_step)")
    parts = train_parts(ALONE, scalar_loss, 4)
    state, window = parts.state(), parts.executor.new_window()
    for rows in (6, ROWS, 6, ROWS):
        state, window, _ = parts.executor(state, parts.batch(rows), window)
    assert compilations.count("jit(train_step)") == before + 2
    pure = jax.jit(make_train_step(scalar_loss, MODEL.apply, ADAM))
    expected = make_state(MODEL, ADAM)
    for rows in (6, ROWS, 6, ROWS):
        expected, _, _ = pure(expected, make_data(rows))
    assert_close(state.params, expected.params, 0.0, atol=2e-6)


def test_only_the_executor_divides_a_remainder_anew() -> None:
    settings = StepSettings(accumulate_steps=4)
    step = make_train_step(example_loss, MODEL.apply, ADAM, settings)
    with pytest.raises(BatchError, match="6 rows does not divide into gradient_accumulate_steps=4"):
        jax.eval_shape(step, make_state(MODEL, ADAM), make_data(6))


@given(st.integers(1, 200), st.integers(1, 40))
def test_a_batch_is_divided_into_the_fewest_pieces_that_are_small_enough(
    rows: int, steps: int
) -> None:
    pieces = micro_batches(rows, steps)
    assert rows % pieces == 0
    assert pieces >= min(steps, rows)
    assert all(n < steps for n in range(1, pieces) if rows % n == 0)


def test_many_evaluation_steps_are_compiled_once(
    evaluation: Parts, compilations: list[str]
) -> None:
    before = compilations.count("jit(eval_step)")
    parts = eval_parts(loss=example_loss)
    window = parts.executor.new_window()
    for examples in (ROWS, ROWS, 7):
        window, wait = parts.executor(parts.start, parts.batch(examples=examples), window)
    assert compilations.count("jit(eval_step)") == before + 1
    assert np.isfinite(float(wait))
    assert finish(HostWindow.fetch(window), ("sum",))["small_sum"] <= 71
    assert HostWindow.fetch(window).columns[0, 2] == 71.0


def test_an_evaluation_donates_the_window_and_never_the_state(evaluation: Parts) -> None:
    first = evaluation.executor.new_window()
    window, wait = evaluation.executor(evaluation.start, evaluation.batch(), first)
    assert all(leaf.is_deleted() for leaf in leaves(first))
    assert not any(leaf.is_deleted() for leaf in leaves(evaluation.start))
    evaluation.executor(evaluation.start, evaluation.batch(), window)
    assert not wait.is_deleted()


@pytest.mark.parametrize("rows", [5, 12])
def test_rows_that_do_not_divide_are_evaluated_on_every_device(
    evaluation: Parts, rows: int
) -> None:
    window = evaluation.executor.new_window()
    window, _ = evaluation.executor(evaluation.start, evaluation.batch(), window)
    window, _ = evaluation.executor(evaluation.start, evaluation.batch(rows, seed=1), window)
    params = make_state(MODEL, ADAM).params
    errors = [
        (MODEL.apply({"params": params}, data["x"]) - data["y"]) ** 2
        for data in (make_data(ROWS), make_data(rows, 1))
    ]
    expected = np.concatenate(errors).mean()
    assert finish(HostWindow.fetch(window))["loss"] == pytest.approx(expected, rel=1e-6)
