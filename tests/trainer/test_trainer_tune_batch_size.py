"""Does a trainer find its batch size, and is it afterwards as if it had not looked for one?"""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.errors import BatchError, XTrainerError
from xtrainer.step import TrainExecutor
from xtrainer.trainer import batch_trials, shapes_only
from xtrainer.trainer.kept_state import kept_state

FULL = "RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes."


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    """Gives a small trainer with Adam that is compiled once."""
    return probes.Repeatable(probes.traced(model={"width": 2}))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives what lets steps of more rows than a limit run out of memory; they eat their state."""
    taken: list[int] = []
    call = TrainExecutor.__call__

    def limit(most: float) -> list[int]:
        def limited(self: Any, state: Any, batch: Any, *rest: Any) -> Any:
            taken.append(batch.rows)
            if batch.rows > most:
                jax.tree.map(lambda x: x.delete(), state)
                raise jax.errors.JaxRuntimeError(FULL)
            return call(self, state, batch, *rest)

        monkeypatch.setattr(TrainExecutor, "__call__", limited)
        return taken

    return limit


def sizes(table: Any) -> dict[int, bool]:
    return {trial.rows: trial.fits for trial in table.trials}


@pytest.mark.parametrize(
    ("most", "examples", "found"),
    [
        (5, 11, {8: False, 4: True}),
        (8, 11, {8: True, 11: False}),
    ],
)
def test_sizes_are_tried_until_one_does_not_fit(
    stage: probes.Repeatable, steps: Any, most: float, examples: int, found: dict[int, bool]
) -> None:
    steps(most)
    table = stage.begin().tune_batch_size(
        xt.ArrayLoader(probes.examples(examples), 8), steps_per_trial=1
    )
    assert sizes(table) == found
    assert table.best.rows in [rows for rows, fits in found.items() if fits]
    for trial in table.trials:
        assert (trial.examples_per_s or 0) > 0 if trial.fits else trial.reason == "out of memory"
        assert (trial.memory_bytes or 0) > 0


def test_where_nothing_fits_the_error_has_the_table_and_what_helps(
    stage: probes.Repeatable, steps: Any
) -> None:
    taken, trainer = steps(0), stage.begin()
    before = zoo.host(trainer.state)
    with pytest.raises(BatchError, match="No batch size fits, down to 1 rows") as caught:
        trainer.tune_batch_size(xt.ArrayLoader(probes.examples(2), 2))
    assert taken == [2, 1]
    assert str(caught.value).count("out of memory") == 2
    assert "remat" in str(caught.value)
    zoo.assert_same(trainer.state, before)


def test_a_trainer_that_was_tuned_trains_on_as_if_it_had_not_been(
    stage: probes.Repeatable, steps: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def layout(trainer: Any) -> Any:
        leaves = jax.tree.leaves(trainer.state)
        return [(x.sharding, x.dtype, getattr(x, "weak_type", False)) for x in leaves]

    def run(tune: bool) -> Any:
        loader = xt.ArrayLoader(probes.examples(24), 4, shuffle=True, seed=1)
        trainer = stage.begin()
        trainer.train_model(loader, num_train_steps=3)
        if tune:
            before = layout(trainer)
            progress, position = trainer.progress.to_json(), trainer.sources.positions()
            steps(4)
            found = sizes(trainer.tune_batch_size(loader, steps_per_trial=1))
            assert found == {4: True, 8: False}
            assert layout(trainer) == before
            assert (trainer.progress.to_json(), trainer.sources.positions()) == (progress, position)
        state = zoo.host(trainer.state)
        trainer.train_model(loader, num_train_steps=9)
        return state, zoo.host(trainer.state), trainer.logger.rows()

    alone = run(tune=False)
    programs = stage.trainer.compiled_train_step.programs
    known = list(programs.recompilations)
    with caplog.at_level(logging.WARNING), zoo.compilations() as compiled:
        tuned = run(tune=True)
    zoo.assert_same(tuned[:2], alone[:2])
    assert tuned[2] == alone[2]
    # Those of the two sizes; the trainer's own step is neither compiled again nor reported.
    assert compiled["train_step"] == 2
    assert (len(programs), programs.recompilations) == (1, known)
    assert "compiled again" not in caplog.text


def test_what_the_compiler_finds_too_large_is_not_tried(
    stage: probes.Repeatable, steps: Any
) -> None:
    taken = steps(float("inf"))
    trainer = stage.begin()
    free = trainer.tune_batch_size(max_batch_size=8, steps_per_trial=1)
    needed = {trial.rows: trial.memory_bytes for trial in free.trials}
    assert taken == [4, 4, 8, 8]
    taken.clear()
    limit = needed[8] - 1
    table = trainer.tune_batch_size(max_batch_size=8, steps_per_trial=1, memory_limit=limit)
    assert taken == [4, 4]
    last = table.trials[-1]
    assert (last.rows, last.fits, last.examples_per_s) == (8, False, None)
    assert last.memory_bytes == needed[8]
    assert f"{limit:,} bytes of a device" in last.reason


def test_improvements_are_told_one_by_one(
    stage: probes.Repeatable, steps: Any, monkeypatch: Any
) -> None:
    speeds = iter([1.0, 4.0, 2.0])  # seconds of a step: 4, 2 and 8 rows a second
    monkeypatch.setattr(batch_trials, "_step_seconds", lambda *_: next(speeds))
    told: list[Any] = []
    table = stage.begin().tune_batch_size(max_batch_size=16, on_improvement=told.append)
    assert [(trial.rows, trial.examples_per_s) for trial in told] == [(4, 4.0), (16, 8.0)]
    assert table.best is told[-1]


def test_an_error_that_is_not_about_memory_is_raised_and_the_state_is_back(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, state: Any, *rest: Any) -> Any:
        jax.tree.map(lambda x: x.delete(), state)
        raise RuntimeError("the cable is broken")

    trainer = stage.begin()
    before = zoo.host(trainer.state)
    monkeypatch.setattr(TrainExecutor, "__call__", fail)
    with pytest.raises(RuntimeError, match="the cable is broken"):
        trainer.tune_batch_size()
    zoo.assert_same(trainer.state, before)


def test_an_example_of_shapes_is_filled_from_the_loader_which_gives_the_same_batch_next() -> None:
    seen: list[float] = []

    class Noting(probes.Traced):
        def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
            jax.debug.callback(lambda ids: seen.append(float(ids)), batch["ids"].max())
            return super().loss_function(params, apply_fn, batch, rng, train)

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), probes.one(0))
    small = {"model": {"width": 2}, "optimizer": zoo.optimizer()}
    trainer = probes.traced(trainer_class=Noting, batch=shapes, **small)
    batches = iter(probes.numbered(3, first=7))
    trainer.tune_batch_size(batches, max_batch_size=4, steps_per_trial=1)
    jax.effects_barrier()
    assert set(seen) == {7.0}  # real rows
    seen.clear()
    trainer.train_model(batches, num_epochs=1)
    jax.effects_barrier()
    assert [seen[0], seen[-1], trainer.global_step] == [7.0, 9.0, 3]


def test_sizes_divide_over_devices_and_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_trials, "_step_seconds", lambda *_: 1.0)
    monkeypatch.setattr(batch_trials, "_analysed", lambda *_: 1)
    trainer = zoo.make_trainer(gradient_accumulate_steps=2)
    table = trainer.tune_batch_size(zoo.loader(60, 16), steps_per_trial=1)
    assert [trial.rows for trial in table.trials] == [16, 32, 48]
    with pytest.raises(BatchError, match="at most 10 rows for a batch, expected 16"):
        trainer.tune_batch_size(zoo.loader(10, 10))


def test_on_a_cpu_there_is_a_cap_unless_one_is_given(
    stage: probes.Repeatable, monkeypatch: Any
) -> None:
    monkeypatch.setattr(batch_trials, "_step_seconds", lambda *_: 1.0)
    monkeypatch.setattr(batch_trials, "_analysed", lambda *_: 1)
    tune = stage.begin().tune_batch_size
    assert max(sizes(tune())) == batch_trials.MAX_CPU_ROWS == 512
    assert max(sizes(tune(max_batch_size=1024))) == 1024


def test_numbers_that_cannot_be_are_told_together(stage: probes.Repeatable) -> None:
    with pytest.raises(xt.ConfigError) as caught:
        stage.begin().tune_batch_size(max_trials=0, steps_per_trial=2.5, memory_limit=-1)
    assert len(caught.value.problems) == 3


def test_a_state_of_shapes_cannot_be_tried() -> None:
    with shapes_only():
        trainer = zoo.make_trainer()
    with pytest.raises(XTrainerError, match="outside of shapes_only"):
        trainer.tune_batch_size()


def test_a_kept_state_comes_back_in_its_layout_and_is_not_on_the_devices_meanwhile() -> None:
    trainer = zoo.make_trainer(
        model={"batch_norm": True},
        parallel=xt.ParallelConfig(fsdp_axis_size=4, fsdp_min_weight_size=1),
        optimizer=zoo.optimizer("adam"),
    )
    before, where = zoo.host(trainer.state), jax.tree.map(lambda x: x.sharding, trainer.state)
    with pytest.raises(KeyError), kept_state(trainer) as make:
        assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(trainer.state))
        first, second = make(), make()
        jax.tree.map(lambda x: x.delete(), first)
        zoo.assert_same(second, before)
        raise KeyError
    zoo.assert_same(trainer.state, before)
    assert jax.tree.map(lambda x: x.sharding, trainer.state) == where


HUNGRY = """
import resource, sys
from pathlib import Path
sys.path[:0] = {paths!r}
import jax, jax.numpy as jnp
import probes

class Hungry(probes.Traced):
    def loss_function(self, params, apply_fn, batch, rng, train=True):
        loss, rest = super().loss_function(params, apply_fn, batch, rng, train)
        # 40 MB a row that no compiler can do without.
        x = jnp.arange(3_200, dtype=jnp.float32)[None] + batch["ids"][:, None]
        square = jnp.sin(x[:, :, None] + x[:, None, :] + params["Dense_0"]["bias"][0])
        return loss + 0 * (square @ square[:, :, :1]).sum((1, 2)), rest

trainer = probes.traced(trainer_class=Hungry)
before = jax.device_get(trainer.state.params)
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 900 * 2**20, -1))
table = trainer.tune_batch_size(max_batch_size=64, steps_per_trial=1)
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
print(table)
same = jax.tree.map(lambda a, b: bool((a == b).all()), before, jax.device_get(trainer.state.params))
print(all(jax.tree.leaves(same)), [trial.fits for trial in table.trials])
trainer.train_model(probes.numbered(2), num_epochs=1)
print("trained", trainer.global_step)
"""


@pytest.mark.slow
def test_a_real_lack_of_memory_ends_the_search_and_not_the_trainer() -> None:
    tests = Path(__file__).resolve().parents[1]
    program = HUNGRY.format(paths=[str(tests.parent), str(tests)])
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stderr
    *table, found, trained = result.stdout.splitlines()
    assert found.startswith("True [True, ") and found.endswith("False]"), result.stdout
    assert "out of memory" in table[-1]
    assert trained == "trained 2"
