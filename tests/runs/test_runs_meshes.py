"""Does a run take the same course on every mesh? Order, losses and parameters of 50 steps."""

import ast
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mesh_zoo as mz
import numpy as np
import optax
import pytest

STEPS = 50
TOLERANCE = 1e-4
FAST = {
    # Every mesh and both accumulations of both models; the rest is marked slow.
    *(("lm", mesh, 1, "sgd") for mesh in mz.MESHES if mesh != "8fsdp"),
    *(("cnn", mesh, 1, "sgd") for mesh in mz.MESHES if mesh != "8dp"),
    ("lm", "8fsdp", 4, "sgd"),
    ("cnn", "8dp", 4, "sgd"),
    ("lm", "8fsdp", 1, "adam"),
}
CASES = [
    pytest.param(*case, marks=() if case in FAST else pytest.mark.slow, id="-".join(map(str, case)))
    for case in (
        (kind, mesh, accumulate, optimizer)
        for kind in mz.KINDS
        for accumulate in (1, 4)
        for optimizer in mz.OPTIMIZERS
        for mesh in mz.MESHES
    )
]


@functools.cache
def reference(kind: str, accumulate: int, optimizer: str) -> mz.Course:
    """Returns the course on one device."""
    return mz.Course(mz.make_trainer(kind, "1", accumulate, optimizer), kind, STEPS)


@pytest.mark.parametrize(("kind", "mesh", "accumulate", "optimizer"), CASES)
def test_a_run_takes_the_course_of_one_device(
    kind: str, mesh: str, accumulate: int, optimizer: str
) -> None:
    trainer = mz.make_trainer(kind, mesh, accumulate, optimizer)
    whole, held = mz.total_bytes(trainer.state.params), mz.device_bytes(trainer.state.params)
    shards = jax.device_count() // trainer.mesh.shape["dp"]
    assert held <= 1.1 * whole / shards  # almost all parameters are divided
    found, expected = mz.Course(trainer, kind, STEPS), reference(kind, accumulate, optimizer)
    assert found.order == expected.order
    assert len(set(found.order)) > STEPS // 2
    np.testing.assert_allclose(found.losses, expected.losses, rtol=TOLERANCE)
    if optimizer == "sgd":  # Adam turns rounding where a gradient is zero into whole updates
        assert mz.relative_difference(found.end, expected.end) < TOLERANCE


@pytest.mark.parametrize(("kind", "accumulate"), [("lm", 1), ("cnn", 4)])
def test_one_device_takes_the_course_of_a_loop_by_hand(kind: str, accumulate: int) -> None:
    course = reference(kind, accumulate, "sgd")
    losses, end = by_hand(kind, accumulate, course.start, course.rng)
    np.testing.assert_allclose(course.losses, losses, rtol=TOLERANCE)
    assert mz.relative_difference(course.end, end) < TOLERANCE
    assert course.losses[-5:].mean() < 0.8 * course.losses[:5].mean()  # it has learned
    assert mz.relative_difference(course.end["params"], course.start["params"]) > 0.1


def test_a_micro_batch_that_devices_cannot_share_counts_as_any_other() -> None:
    courses = []
    for mesh in ("1", "8fsdp"):
        trainer = mz.make_trainer("cnn", mesh, accumulate=4, rows=16)  # four rows on eight devices
        courses.append(mz.Course(trainer, "cnn", 5, rows=16))
    assert courses[1].order == courses[0].order
    np.testing.assert_allclose(courses[1].losses, courses[0].losses, rtol=TOLERANCE)
    assert mz.relative_difference(courses[1].end, courses[0].end) < TOLERANCE


def by_hand(kind: str, accumulate: int, variables: Any, rng: jax.Array) -> tuple[list[float], Any]:
    """Returns losses and variables of a plain loop: one loss over all micro-batches of a step."""
    model = mz.build_model(kind)
    optimizer = optax.sgd(mz.SGD_RATE, momentum=mz.SGD_MOMENTUM)

    def loss_of_batch(params: Any, rest: Any, batch: Any, rng: jax.Array) -> Any:
        total, weight = 0.0, batch["mask"].sum()
        for index in range(accumulate):
            piece = {name: x[index::accumulate] for name, x in batch.items()}
            logits, updated = model.apply(
                {"params": params, **rest},
                piece["inputs"],
                train=True,
                rngs={"dropout": jax.random.fold_in(rng, index)},
                mutable=list(rest),
            )
            rest = {**rest, **updated}
            targets = piece["targets"].astype(jnp.int32)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            total += (losses * piece["mask"]).sum()
        return total / weight, rest

    @jax.jit
    def step(params: Any, rest: Any, opt_state: Any, batch: Any, rng: jax.Array) -> Any:
        differentiate = jax.value_and_grad(loss_of_batch, has_aux=True)
        (loss, rest), grads = differentiate(params, rest, batch, rng)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), rest, opt_state, loss

    params = variables["params"]
    rest = {name: leaf for name, leaf in variables.items() if name != "params"}
    opt_state, losses = optimizer.init(params), []
    batches = mz.loader(kind)
    while len(losses) < STEPS:
        for batch in batches:
            key = jax.random.fold_in(rng, len(losses))
            params, rest, opt_state, loss = step(params, rest, opt_state, batch, key)
            losses.append(float(loss))
    return losses, {"params": params, **rest}


# Nothing in a user's loss or model names a mesh axis.

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").rglob("*.py"))
AXES = {"dp", "fsdp", "pp", "tp"}
MESH_WORDS = {
    *("PartitionSpec", "NamedSharding", "Mesh", "with_sharding_constraint", "shard_map"),
    *("axis_name", "axis_index", "psum", "pmean", "pmax", "pmin", "psum_scatter"),
    *("all_gather", "all_to_all", "ppermute", "pmap", "device_count", "process_index"),
}


def mesh_words(source: str) -> set[str]:
    """Returns the words of the classes and module functions of a source that speak of a mesh.

    Models and losses are classes; what a config says of a mesh stands in ``get_config``.
    """
    found: set[str] = set()
    parts = [part for part in ast.parse(source).body if isinstance(part, ast.ClassDef)]
    for node in (node for part in parts for node in ast.walk(part)):
        match node:
            case ast.Constant(value=str(word)) if word in AXES:
                found.add(word)
            case ast.Name(id=word) | ast.Attribute(attr=word) | ast.keyword(arg=word):
                found |= {word} & MESH_WORDS
    return found


def test_no_model_and_no_loss_of_the_experiments_names_a_mesh_axis() -> None:
    assert {path.name for path in EXPERIMENTS} >= {"byte_lm.py", "digits.py", "model.py"}
    assert {path.name: mesh_words(path.read_text()) for path in EXPERIMENTS} == {
        path.name: set() for path in EXPERIMENTS
    }


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return jax.lax.psum(x, 'dp')", {"psum", "dp"}),
        ("return nn.BatchNorm(axis_name=axis)(x)", {"axis_name"}),
        ("return constrain(x, PartitionSpec(None))", {"PartitionSpec"}),
        ("return nn.Dense(3, name='head')(x)", set()),
    ],
)
def test_a_mesh_axis_in_a_class_is_found(body: str, words: set[str]) -> None:
    source = f"class Net:\n    def __call__(self, x):\n        {body}\n"
    assert mesh_words(source) == words
