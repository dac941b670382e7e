"""Does a plan tell what a run will need, without running, allocating or writing anything?"""

import dataclasses
import gc
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mesh_zoo as mz
import optax
import pytest
import zoo

import xtrainer as xt
from xtrainer.errors import BatchError
from xtrainer.trainer import shapes_only
from xtrainer.tuning import RunPlan, plan_run


def plan(*lengths: Any, compile_steps: bool = False, **settings: Any) -> RunPlan:
    """Returns the plan of the small classifier."""
    names = ("num_epochs", "num_train_steps", "steps_per_epoch", "eval_rows", "memory_limit")
    asked = {name: settings.pop(name) for name in names if name in settings}
    with shapes_only():
        trainer = zoo.make_trainer(**settings)
    return plan_run(trainer, *lengths, compile_steps=compile_steps, **asked)


def test_planning_allocates_nothing_and_writes_nothing(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "logger": xt.LoggerConfig(log_path=str(tmp_path / "run")),
        "callbacks": [xt.ModelCheckpointConfig(monitor="loss"), xt.LearningRateMonitorConfig()],
    }
    plan(num_train_steps=10, compile_steps=True, **settings)  # constants that JAX keeps
    gc.collect()
    before = len(jax.live_arrays())
    with shapes_only():
        trainer = zoo.make_trainer(**settings)
        found = plan_run(trainer, num_train_steps=10)
    gc.collect()
    assert len(jax.live_arrays()) == before
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(trainer.state))
    assert found.holds and found.train.compiled
    assert list(tmp_path.iterdir()) == []


def test_a_real_trainer_has_the_same_plan() -> None:
    found = plan(num_train_steps=3, compile_steps=True)
    assert found == plan_run(zoo.make_trainer(), num_train_steps=3)


def test_the_table_tells_layout_and_who_decided_it() -> None:
    with shapes_only():
        trainer = mz.make_trainer("lm", "4dp_2fsdp", 1, "adam")
    rows = {row.path: row for row in plan_run(trainer, compile_steps=False).parameters}
    head = rows["head/kernel"]
    assert head.device_bytes * 2 == head.num_bytes == 4 * head.elements
    assert head.spec == "·, fsdp"  # the tensor axis has one device
    assert rows["final_norm/scale"].decided_by == "the default"
    assert sum(row.elements for row in rows.values()) == trainer.get_num_params()


def test_the_step_sends_its_gradients_and_counts_its_operations() -> None:
    found = plan(compile_steps=True).train
    kinds = {one.kind: one for one in found.collectives}
    assert kinds["all-reduce"].num_bytes >= found.memory.parameters
    assert found.flops is not None and found.flops > 2 * 16 * 4 * 8


def test_what_the_compiler_of_the_cpu_leaves_out_is_noted() -> None:
    assert "does not count what its fused library calls hold" in plan(compile_steps=True).notes[-1]
    assert plan().notes == ()


def test_rows_that_do_not_divide_are_told_together() -> None:
    found = plan(batch=zoo.classification_data(12), gradient_accumulate_steps=5, num_train_steps=1)
    assert not found.holds
    pieces, devices = found.problems
    assert "12 rows does not divide into gradient_accumulate_steps=5" in pieces
    assert "12 rows does not divide over the 8 devices" in devices


def test_what_cannot_be_is_not_compiled() -> None:
    found = plan(batch=zoo.classification_data(12), compile_steps=True)
    assert not found.train.compiled
    assert "not compiled" in found.notes[-1]


def test_micro_batches_that_do_not_divide_over_the_devices_are_noted() -> None:
    found = plan(gradient_accumulate_steps=4)
    assert found.holds
    assert "micro-batch of 4 rows does not divide over the 8 devices" in found.notes[0]


def test_large_parameters_left_whole_are_noted() -> None:
    parallel = xt.ParallelConfig(fsdp_axis_size=8, fsdp_min_weight_size=9)
    found = plan(model={"width": 7, "classes": 9}, parallel=parallel)
    (note,) = [line for line in found.notes if line.startswith("Dense_1/kernel")]
    assert "(7, 9) divides by fsdp=8" in note


def test_rules_that_name_nothing_are_noted() -> None:
    parallel = xt.ParallelConfig(param_rules=(("*/nowhere", ("fsdp",)),))
    assert any("'*/nowhere' names no parameter" in line for line in plan(parallel=parallel).notes)


def test_more_bytes_than_the_limit_are_a_problem_of_each_step() -> None:
    training, evaluation = plan(memory_limit=100).problems
    assert "The training step needs at least" in training
    assert "more than the limit of 100" in evaluation
    assert plan(memory_limit=2**30).holds


def test_an_evaluation_batch_is_padded_to_the_devices() -> None:
    assert plan(eval_rows=13).evaluation.rows == 16
    assert plan(eval_rows=13, trainer_class=zoo.ScalarClassifier).evaluation.rows == 13


def test_the_schedule_has_its_turning_points() -> None:
    scheduler = xt.SchedulerConfig(name="linear", lr=0.5, warmup_steps=10, decay_steps=100)
    optimizer = xt.OptimizerConfig(name="sgd", scheduler=scheduler)
    found = plan(num_train_steps=100, optimizer=optimizer)
    assert found.notes == ()
    points = {point.name: (point.step, point.rate) for point in found.schedule.rates}
    assert points["first step"] == (1, 0.0)
    assert points["end of warmup"] == (11, 0.5)
    step, rate = points["last step"]
    assert step == 100 and rate == pytest.approx(0.5 / 90, rel=1e-5)
    other = plan(num_train_steps=50, optimizer=optimizer)
    assert "decay_steps: found 100, while the run has 50 steps" in other.notes[0]


def test_the_length_is_that_of_train_model() -> None:
    found = plan(num_epochs=3, steps_per_epoch=7).schedule
    assert (found.steps, found.epochs) == (21, 3)
    assert plan(num_epochs=3).schedule.steps is None
    assert "found both (3 and 4)" in plan(num_epochs=3, num_train_steps=4).problems[0]


def test_a_ready_optimizer_has_no_known_rate() -> None:
    found = plan(num_train_steps=5, optimizer=optax.adam(1e-3))
    assert found.schedule.rates == ()


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"max_to_keep": 3, "every_n_steps": 10}, 3),
        ({"max_to_keep": 3, "every_n_steps": 10, "monitor": "loss"}, 5),
        ({"max_to_keep": 1, "every_n_steps": 10}, 2),
        ({"max_to_keep": None, "save_on_start": True}, 3),
        ({"max_to_keep": None, "every_n_minutes": 5.0}, None),
        ({"max_to_keep": 3}, 2),
        ({"max_to_keep": None, "every_n_steps": 30}, 5),  # 30, 50, 60, 90, 100
        ({"max_to_keep": 9, "every_n_steps": 30}, 5),
        ({"max_to_keep": 2, "save_last": False}, 2),
    ],
)
def test_checkpoints_that_are_kept(
    tmp_path: Path, settings: dict[str, Any], kept: int | None
) -> None:
    callback = xt.ModelCheckpointConfig(log_path=str(tmp_path), **settings)
    found = plan(
        num_train_steps=100,
        callbacks=[callback],
        check_val_every_n_epoch=-1,
        check_val_every_n_steps=50,
    )
    assert found.checkpoints[0].kept == kept


def test_a_checkpoint_is_as_large_as_the_arrays_it_holds(tmp_path: Path) -> None:
    adam = xt.OptimizerConfig(name="adam")
    sizes = []
    for whole in (True, False):
        callback = xt.ModelCheckpointConfig(log_path=str(tmp_path), save_optimizer_state=whole)
        found = plan(callbacks=[callback], optimizer=adam, num_train_steps=1)
        sizes.append(found.checkpoints[0].num_bytes)
    params = sum(row.num_bytes for row in found.parameters)
    assert sizes[0] - sizes[1] == pytest.approx(2 * params, abs=64)
    assert params < sizes[1] < params + 64


def test_the_plan_is_json() -> None:
    found = plan(num_train_steps=2, compile_steps=True)
    data = json.loads(json.dumps(found.to_json()))
    assert data["holds"] is True
    assert data["train"]["memory"]["total"] == found.train.memory.total
    assert data["mesh"] == {"dp": 8, "fsdp": 1, "pp": 1, "tp": 1}
    assert data.keys() == {"holds", *(field.name for field in dataclasses.fields(RunPlan))}


def test_steps_of_a_run_that_compiles_none_are_not_compiled() -> None:
    found = plan(debug=True, compile_steps=True)
    assert not found.train.compiled
    assert "trainer.debug" in found.notes[0]


def test_a_batch_of_unequal_leaves_is_refused() -> None:
    batch = xt.Batch(inputs=jnp.ones((4, 4)), targets=jnp.ones(3, int))
    with pytest.raises(BatchError, match="leading"):
        plan(batch=batch)
