"""Does sharding of parameters and optimizer hold in memory, and in what devices send each other?"""

import functools
from typing import Any

import byte_lm
import jax
import mesh_zoo as mz
import optax
import pytest
import zoo
from hlo_zoo import Instruction, Program, arrays
from jax.sharding import NamedSharding, PartitionSpec

import xtrainer as xt

SHARDED = ["8fsdp", "4dp_2fsdp"]


def real_trainer(fsdp: int) -> Any:
    """Returns a trainer of the experiment's own byte LM, its matrices and no vector sharded."""
    config = byte_lm.get_config()
    optimizer = xt.Config.from_config_dict(xt.OptimizerConfig, config.optimizer)
    rows = mz.lm_examples(8)
    return zoo.make_trainer(
        mz.MaskedLM,
        config.model.model_config.to_dict(),
        optimizer,
        batch=rows,
        parallel=xt.ParallelConfig(fsdp_axis_size=fsdp, fsdp_min_weight_size=1024),
    )


@functools.cache
def built(mesh: str, accumulate: int) -> tuple[Any, Program]:
    """Returns a trainer and its compiled training step under Adam."""
    trainer = mz.make_trainer("lm", mesh, accumulate, "adam")
    return trainer, Program(mz.compile_step(trainer).as_text())


def moment_gathers(compiled: Program) -> list[Instruction]:
    """Returns what gathers an optimizer moment, or anything that was computed from one."""
    return [
        gather
        for gather in compiled.collectives("all-gather")
        if any(label.startswith("state.opt_state") for label in compiled.inputs_of(gather))
    ]


def test_a_device_holds_an_eighth_of_parameters_and_moments() -> None:
    trainer = real_trainer(fsdp=8)
    moments = trainer.state.opt_state
    names = ["/".join(map(str, path)) for path, _ in jax.tree.flatten_with_path(moments)[0]]
    assert sum(".mu" in name for name in names) == sum(".nu" in name for name in names) > 10
    for tree in (trainer.state.params, moments):
        assert mz.device_bytes(tree) <= mz.total_bytes(tree) / 7


def test_a_device_of_four_by_two_holds_half() -> None:
    trainer = real_trainer(fsdp=2)
    for tree in (trainer.state.params, trainer.state.opt_state):
        assert mz.device_bytes(tree) <= mz.total_bytes(tree) / 1.95


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("mesh", SHARDED)
def test_the_compiled_step_gathers_parameters_and_no_moment(mesh: str, accumulate: int) -> None:
    trainer, compiled = built(mesh, accumulate)
    shapes = {leaf.shape for leaf in jax.tree.leaves(trainer.state.params)}
    # Within the loop over micro-batches everything that goes into it counts as an input.
    of_params = [
        gather
        for gather in compiled.collectives("all-gather")
        if any(label.startswith("state.params") for label in compiled.inputs_of(gather))
        and {shape for shape, _ in arrays(gather.type)} <= shapes
    ]
    if accumulate == 1:
        assert all(
            label.startswith("state.params")
            for gather in of_params
            for label in compiled.inputs_of(gather)
        )
    assert len(of_params) >= 5  # embedding, head and the matrices of a block
    assert moment_gathers(compiled) == []


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("mesh", SHARDED)
def test_the_compiled_step_sends_nothing_from_all_to_all(mesh: str, accumulate: int) -> None:
    assert built(mesh, accumulate)[1].collectives("all-to-all") == []


def test_a_gathered_moment_is_found() -> None:
    trainer = mz.make_trainer("lm", "8fsdp", 1, "adam")
    trainer.optimizer = gathering(trainer.optimizer, trainer.batch_layout.replicated)
    compiled = Program(mz.compile_step(trainer).as_text())
    largest = max(leaf.size for leaf in jax.tree.leaves(trainer.state.params))
    sizes = [
        functools.reduce(lambda a, b: a * b, shape, 1)
        for gather in moment_gathers(compiled)
        for shape, _ in arrays(gather.type)
    ]
    assert max(sizes) == largest


def test_what_a_scan_gathers_is_traced_to_what_goes_into_it() -> None:
    mesh = mz.make_trainer("lm", "8fsdp").mesh
    divided, whole = (
        NamedSharding(mesh, spec) for spec in (PartitionSpec("fsdp"), PartitionSpec())
    )

    def sums(state: dict[str, Any], batch: Any) -> Any:
        def body(total: Any, x: Any) -> Any:
            gathered = jax.lax.with_sharding_constraint(total, whole)
            return jax.lax.with_sharding_constraint(gathered[::-1] * x, divided), None

        return jax.lax.scan(body, state["moment"], batch)[0]

    shapes = {"moment": jax.ShapeDtypeStruct((64,), "float32")}
    compiled = (
        jax.jit(sums, in_shardings=({"moment": divided}, whole), out_shardings=divided)
        .lower(shapes, jax.ShapeDtypeStruct((3,), "float32"))
        .compile()
    )
    found = Program(compiled.as_text())
    (gather,) = found.collectives("all-gather")
    assert gather.computation != "main" and gather.num_bytes == 256
    assert "state['moment']" in found.inputs_of(gather)


def gathering(
    inner: optax.GradientTransformation, whole: NamedSharding
) -> optax.GradientTransformation:
    """Returns an optimizer that makes its moments whole on every device before it uses them."""

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        return inner.update(grads, jax.lax.with_sharding_constraint(state, whole), params)

    return optax.GradientTransformation(inner.init, update)
