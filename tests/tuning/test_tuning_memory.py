"""Are the bytes of a plan those that a real run has on each device?"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import mesh_zoo as mz
import pytest
import zoo

import xtrainer as xt
from xtrainer.data import Prefetcher
from xtrainer.trainer import shapes_only
from xtrainer.tuning import measure_memory, plan_run
from xtrainer.tuning.memory import BATCHES_AHEAD


def divided() -> Any:
    """Returns a trainer with a divided state that accumulates gradients."""
    return mz.make_trainer("lm", "4dp_2fsdp", 2, "adam")


def with_statistics() -> Any:
    """Returns a trainer with a mutable collection."""
    return zoo.make_trainer(model={"batch_norm": True}, optimizer=zoo.optimizer("adam"))


def held(tree: Any) -> int:
    """Returns the bytes of live arrays that the fullest device holds, keys included."""
    unwrap = lambda x: (  # noqa: E731
        jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    )
    return mz.device_bytes(jax.tree.map(unwrap, tree))


@pytest.mark.parametrize("make_trainer", [divided, with_statistics])
def test_predicted_bytes_are_those_of_live_arrays_and_of_the_compiled_step(
    make_trainer: Callable[[], Any],
) -> None:
    with shapes_only():
        trainer = make_trainer()
    memory = plan_run(trainer).train.memory
    real = make_trainer()
    batch = real.prepare_train_batch(real.exmp_batch)
    data = jax.device_put(batch.data, real.batch_layout.sharding(batch.rows))
    assert memory.parameters == held(real.state.params)
    assert memory.optimizer == held(real.state.opt_state)
    assert memory.other_state == held(real.state.replace(params=(), opt_state=()))
    assert memory.batches == (2 + BATCHES_AHEAD) * held(data)
    compiled = mz.compile_step(real).memory_analysis()
    assert memory.temporaries == compiled.temp_size_in_bytes
    state = memory.parameters + memory.optimizer + memory.other_state
    assert state + held(data) + memory.padding == compiled.argument_size_in_bytes


def test_an_evaluation_keeps_the_optimizer_and_has_fewer_temporaries() -> None:
    with shapes_only():
        trainer = divided()
    plan = plan_run(trainer)
    assert plan.evaluation.memory.optimizer == plan.train.memory.optimizer > 0
    assert 0 < plan.evaluation.memory.temporaries < plan.train.memory.temporaries


def test_a_state_that_is_not_donated_counts_twice() -> None:
    sizes = []
    for donate in (True, False):
        with shapes_only():
            trainer = zoo.make_trainer(donate_train_state=donate)
        sizes.append(plan_run(trainer).train.memory)
    assert sizes[1].outputs - sizes[0].outputs >= sizes[0].parameters


def test_without_a_compiled_step_only_shapes_count() -> None:
    with shapes_only():
        trainer = zoo.make_trainer()
    batch = trainer.exmp_batch
    memory = measure_memory(trainer.state, batch, steps_in_flight=1)
    assert memory.temporaries == memory.outputs == memory.code == memory.padding == 0
    assert memory.total == sum(
        (memory.parameters, memory.optimizer, memory.other_state, memory.batches)
    )


def test_as_many_batches_wait_as_the_loop_prepares() -> None:
    assert inspect.signature(Prefetcher).parameters["size"].default == BATCHES_AHEAD
    assert xt.TrainerConfig().max_steps_in_flight == 2
