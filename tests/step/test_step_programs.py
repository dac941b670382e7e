"""Is a program compiled ahead used as it is, and a second one reported with what has changed?"""

import logging
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import probes
import pytest
import zoo
from step_zoo import Data, Net, example_loss, make_data, make_state, on_devices

from xtrainer.errors import StepError
from xtrainer.parallel import BatchLayout, ParallelConfig, copy_tree
from xtrainer.state import TrainState
from xtrainer.step import (
    PlacedBatch,
    StepSettings,
    TrainExecutor,
    describe_loss,
    make_train_step,
    train_layout,
)
from xtrainer.step.programs import spec_of

MODEL, SGD, ROWS = Net(), optax.sgd(0.1), 8
KERNEL = "state/params/Dense_0/kernel"
Change = Callable[[jax.Array], Any]


@dataclass(frozen=True)
class Parts:
    """An executor with what it runs on."""

    executor: TrainExecutor
    start: TrainState
    layout: BatchLayout

    def state(self) -> TrainState:
        """Returns the first state in fresh buffers."""
        return copy_tree(self.start, jax.tree.map(lambda x: x.sharding, self.start))

    def batch(self, rows: int = ROWS, placed: bool = True, **leaves: np.ndarray) -> PlacedBatch:
        """Returns a batch of host arrays or of placed ones; with ``leaves`` in it."""
        data, place = {**make_data(rows), **leaves}, self.layout.sharding(rows)
        mask = jax.device_put(np.ones(rows, bool), place)
        return PlacedBatch(jax.device_put(data, place) if placed else data, mask, rows, rows)

    def step(self, state: TrainState, batch: PlacedBatch | None = None) -> TrainState:
        """Returns the state after a step with a new window."""
        batch = self.batch() if batch is None else batch
        return self.executor(state, batch, self.executor.new_window())[0]

    @property
    def reports(self) -> list[str]:
        """What was said of programs that nobody had asked for ahead."""
        return self.executor.programs.recompilations


def parts(loss: Any = example_loss, count: int = 1, **options: Any) -> Parts:
    """Returns what takes steps on so many devices; nothing is compiled yet."""
    config = ParallelConfig(data_axis_size=count)
    state, layout = on_devices(make_state(MODEL, SGD), config)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    settings = StepSettings(layout=layout, param_shardings=shardings.params)
    terms = describe_loss(loss, MODEL.apply, settings, state, make_data(ROWS), ROWS, True)
    make_step = lambda chosen: make_train_step(loss, MODEL.apply, SGD, chosen)  # noqa: E731
    names = train_layout(terms.layout, state.params, settings)
    executor = TrainExecutor(make_step, settings, names, shardings, layout, **options)
    return Parts(executor, state, layout)


@pytest.fixture
def ready() -> Parts:
    """Parts whose program for a batch of ``ROWS`` rows was compiled ahead."""
    made = parts()
    program = made.executor.ahead(made.start, make_data(ROWS))
    assert program is not None
    program.result()
    return made


def with_kernel(state: TrainState, change: Change) -> TrainState:
    """Returns a state with one parameter changed."""
    params = jax.tree.map(lambda x: x, state.params)
    params["Dense_0"]["kernel"] = change(params["Dense_0"]["kernel"])
    return state.replace(params=params)


# A program that was asked for ahead.


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("placed", [True, False], ids=["placed arrays", "host arrays"])
def test_a_program_compiled_ahead_is_the_one_that_is_called(placed: bool, count: int) -> None:
    made = parts(count=count)
    with zoo.compilations() as ahead:
        made.executor.ahead(made.start, make_data(ROWS)).result()  # type: ignore[union-attr]
    assert ahead["train_step"] == 1
    with zoo.compilations() as compiled:
        state = made.step(made.state(), made.batch(placed=placed))
        made.step(state, made.batch(placed=placed))
    assert compiled["train_step"] == 0
    assert made.reports == []


def test_a_program_is_compiled_ahead_from_shapes_alone() -> None:
    made = parts()
    shapes = jax.eval_shape(lambda: make_data(ROWS))
    made.executor.ahead(spec_of(made.start), shapes).result()  # type: ignore[union-attr]
    with zoo.compilations() as compiled:
        made.step(made.state())
    assert compiled["train_step"] == 0


def test_a_program_asked_for_twice_is_compiled_once() -> None:
    made = parts()
    with zoo.compilations() as compiled:
        programs = [made.executor.ahead(made.start, make_data(ROWS)) for _ in range(2)]
        assert programs[0] is programs[1] is not None
        programs[0].result()
    assert compiled["train_step"] == 1


def test_other_shapes_asked_for_ahead_are_not_reported(ready: Parts) -> None:
    ready.executor.ahead(ready.start, make_data(6)).result()  # type: ignore[union-attr]
    with zoo.compilations() as compiled:
        ready.step(ready.step(ready.state()), ready.batch(6))
    assert compiled["train_step"] == 0
    assert len(ready.executor.programs) == 2
    assert ready.reports == []


def test_a_call_waits_for_a_program_that_is_being_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go = threading.Event()

    def compile_later(lowered: Any, name: str) -> Any:
        assert go.wait(60.0)
        return lowered.compile()

    made = parts(compile_program=compile_later)
    program = made.executor.ahead(made.start, make_data(ROWS))
    assert program is not None and not program.done()
    times = iter([1.0, 3.5])

    def clock() -> float:
        go.set()  # it is asked for now
        return next(times)

    monkeypatch.setattr("xtrainer.step.programs.time", SimpleNamespace(perf_counter=clock))
    assert int(made.step(made.state()).step) == 1
    assert made.executor.programs.compile_s == 2.5
    assert made.reports == []


def test_an_error_of_compiling_ahead_is_raised_where_the_program_is_asked_for() -> None:
    def fail(lowered: Any, name: str) -> Any:
        raise MemoryError(f"planted for {name}")

    made = parts(compile_program=fail)
    program = made.executor.ahead(made.start, make_data(ROWS))
    assert program is not None and program.exception() is not None
    state = made.state()
    with pytest.raises(MemoryError, match="planted for train_step"):
        made.step(state)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_where_steps_are_debugged_nothing_is_compiled_ahead() -> None:
    made = parts(debug=True)
    assert made.executor.ahead(made.start, make_data(ROWS)) is None
    assert len(made.executor.programs) == 0


# A program besides those.


@pytest.mark.parametrize(
    ("batch", "line"),
    [
        ({"rows": 6}, r"batch/x: shape \(6, 4\), before \(8, 4\)"),
        ({"row_weight": np.ones(8, np.int32)}, "batch/row_weight: dtype int32, before float32"),
        ({"more": np.ones(8, np.int32)}, "batch/more: is new"),
    ],
    ids=["shape", "dtype", "leaf"],
)
def test_another_batch_is_reported_with_the_leaf_and_what_has_changed(
    ready: Parts, caplog: pytest.LogCaptureFixture, batch: dict[str, Any], line: str
) -> None:
    state = ready.step(ready.state())
    with zoo.compilations() as compiled, caplog.at_level(logging.WARNING):
        ready.step(state, ready.batch(**batch))
    assert compiled["train_step"] == 1
    (report,) = ready.reports
    assert re.search(line, report)
    assert "train_step is compiled again, since its arguments have changed" in caplog.text
    assert re.search(line, caplog.text)
    assert ("drop_last=True" in caplog.text) is ("rows" in batch)


def test_a_report_names_only_what_has_changed(ready: Parts) -> None:
    ready.step(ready.state(), ready.batch(row_weight=np.ones(8, np.int32)))
    assert ready.reports == ["batch/row_weight: dtype int32, before float32"]


def test_a_parameter_of_another_dtype_is_reported_and_taken(ready: Parts) -> None:
    state = ready.step(ready.state())
    with zoo.compilations() as compiled:
        state = ready.step(with_kernel(state, lambda x: x.astype(jnp.bfloat16)))
        ready.step(state)
    assert ready.reports == [f"{KERNEL}: dtype bfloat16, before float32"]
    assert compiled["train_step"] == 1


def test_what_the_state_was_like_is_told_from_the_program_of_its_batch(ready: Parts) -> None:
    state = ready.step(ready.step(ready.state()), ready.batch(6))  # compiled last: other rows
    ready.step(with_kernel(state, lambda x: x.astype(jnp.bfloat16)))
    assert ready.reports[1:] == [f"{KERNEL}: dtype bfloat16, before float32"]


@pytest.mark.parametrize("kinds", [True, False])
def test_programs_of_every_batch_take_a_changed_state(ready: Parts, kinds: bool) -> None:
    full, less = [
        ready.batch(rows)._replace(kind=object() if kinds else None) for rows in (ROWS, 6)
    ]
    state = ready.step(ready.step(ready.state(), full), less)
    state = with_kernel(state, lambda x: x.astype(jnp.bfloat16))
    with zoo.compilations() as compiled:
        for batch in (full, less, full, less):
            state = ready.step(state, batch)
    assert compiled["train_step"] == 2
    assert int(state.step) == 6


def test_several_steps_at_once_report_what_has_changed_as_well() -> None:
    made = parts()
    batches = [made.batch(placed=False)] * 3
    step = lambda state: made.executor.many(  # noqa: E731
        state, batches, made.executor.new_window(), [0] * 3
    )[0]
    state = with_kernel(step(made.state()), lambda x: x.astype(jnp.bfloat16))
    assert int(step(state).step) == 6
    assert made.reports == [f"{KERNEL}: dtype bfloat16, before float32"]
    with pytest.raises(StepError, match="donated to an earlier step"):
        step(state)


def test_a_weak_type_alone_needs_no_other_program(ready: Parts) -> None:
    state = ready.step(ready.state())
    three = jax.device_put(jax.jit(lambda: 3)(), state.step.sharding)
    assert three.weak_type
    with zoo.compilations() as compiled:
        state = ready.step(state.replace(step=three))
    assert compiled["train_step"] == 0
    assert (int(state.step), ready.reports) == (4, [])


def test_the_first_program_is_no_second_one() -> None:
    made = parts()
    made.step(made.state())
    assert made.reports == []
    assert len(made.executor.programs) == 1
    assert made.executor.programs.compile_s > 0


# What no program takes.


def test_a_leaf_on_another_device_is_an_error_that_names_it(ready: Parts) -> None:
    state = ready.step(ready.state())
    moved = with_kernel(state, lambda x: jax.device_put(x, jax.devices()[1]))
    found = rf"{KERNEL}: sharding .*CpuDevice\(id=1\).*, before NamedSharding\("
    with pytest.raises(StepError, match=found) as info:
        ready.step(moved)
    assert "jax.device_put(new, old.sharding)" in str(info.value)
    assert str(info.value).count("sharding Single") == 1  # the other leaves are where they were
    assert ready.reports == []
    assert int(ready.step(state).step) == 2


def test_a_state_that_was_donated_is_an_error_that_says_so(ready: Parts) -> None:
    old = ready.state()
    state = ready.step(old)
    with pytest.raises(StepError, match=f"{KERNEL}: was donated to an earlier step and is gone"):
        ready.step(old)
    assert ready.reports == []
    assert int(ready.step(state).step) == 2


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda params: {**params, "more": params["Dense_0"]}, "state/params/more/bias: is new"),
        (lambda params: {"Dense_0": params["Dense_0"]}, "state/params/Dense_1/bias: is no more"),
        (flax.core.freeze, "the containers are .*FrozenDict"),
    ],
    ids=["more", "less", "containers"],
)
def test_a_state_of_other_leaves_is_an_error_that_names_them(
    ready: Parts, change: Callable[[Any], Any], line: str
) -> None:
    state = ready.step(ready.state())
    with pytest.raises(StepError, match=f"train_step cannot take its arguments; found:\n  {line}"):
        ready.step(state.replace(params=change(state.params)))
    assert int(ready.step(state).step) == 2


@pytest.mark.parametrize("donate", [True, False])
def test_an_error_within_a_step_is_not_taken_for_one_of_its_arguments(donate: bool) -> None:
    def loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
        def look(x: Any) -> np.ndarray:
            if np.max(x) > 100:
                raise ValueError("planted")
            return np.asarray(x)

        value, metrics = example_loss(params, apply_fn, batch, rng, train)
        x = jax.lax.stop_gradient(batch["x"][:, 0])
        return value + 0 * jax.pure_callback(look, jax.eval_shape(lambda: x), x), metrics

    made = parts(loss, donate_state=donate)
    state = made.step(made.state())
    with pytest.raises(jax.errors.JaxRuntimeError, match="planted"):
        jax.block_until_ready(made.step(state, made.batch(x=np.full((ROWS, 4), 1e3, np.float32))))
    assert made.reports == []


# A run.


@pytest.mark.parametrize("rows", [64, 40], ids=["even", "smaller last batch"])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_run_with_epochs_and_validations_compiles_nothing_twice(
    steps: int, rows: int, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = zoo.make_trainer(steps_per_dispatch=steps, check_val_every_n_steps=3)
    with caplog.at_level(logging.WARNING), zoo.compilations() as compiled:
        trainer.train_model(zoo.loader(rows), zoo.loader(rows), num_epochs=3)
    executors = trainer.compiled_train_step, trainer.compiled_eval_step
    assert [executor.programs.recompilations for executor in executors] == [[], []]
    assert compiled["eval_step"] == 1
    found = compiled["train_step"] + compiled["train_steps"]
    assert found == len(executors[0].programs)
    assert "compiled again" not in caplog.text


def test_a_trainers_state_that_was_cast_is_reported_once() -> None:
    trainer = probes.Repeatable(zoo.make_trainer(mesh=zoo.devices(1))).begin()
    trainer.train_model(zoo.loader(), num_epochs=1)
    trainer.state = with_kernel(trainer.state, lambda x: x.astype(jnp.bfloat16))
    trainer.train_model(zoo.loader(), num_epochs=3)
    (report,) = trainer.compiled_train_step.programs.recompilations
    assert report == f"{KERNEL}: dtype bfloat16, before float32"


def test_a_trainers_state_on_another_device_is_an_error() -> None:
    trainer = zoo.make_trainer(mesh=zoo.devices(1))
    trainer.state = with_kernel(trainer.state, lambda x: jax.device_put(x, jax.devices()[1]))
    with pytest.raises(StepError, match=f"{KERNEL}: sharding"):
        trainer.train_model(zoo.loader(), num_epochs=1)
