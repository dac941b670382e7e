"""Is the state made of arrays only, and does progress survive being written?"""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xtrainer.errors import CheckpointError
from xtrainer.state import GuardState, Progress, TrainState

PARAMS = {"w": jnp.ones(2)}


def test_a_new_state_has_taken_no_step() -> None:
    optimizer = optax.adam(1e-3)
    stats = {"batch_stats": {"mean": jnp.zeros(3)}}
    state = TrainState.create(PARAMS, optimizer, jax.random.key(4), stats)
    assert int(state.step) == 0
    assert state.params is PARAMS
    assert jax.tree.structure(state.opt_state) == jax.tree.structure(optimizer.init(PARAMS))
    assert state.mutable_variables == stats
    assert state.mutable_variables is not stats
    np.testing.assert_array_equal(
        jax.random.key_data(state.rng), jax.random.key_data(jax.random.key(4))
    )


def test_a_state_without_collections_has_an_empty_dictionary() -> None:
    assert TrainState.create(PARAMS, optax.sgd(0.1), jax.random.key(0)).mutable_variables == {}


def test_counters_are_int32_scalars() -> None:
    state = TrainState.create(PARAMS, optax.sgd(0.1), jax.random.key(0))
    guard = state.guard
    for counter in (state.step, guard.skipped, guard.consecutive, guard.first, guard.ended):
        assert (counter.dtype, counter.shape, counter.weak_type) == (jnp.int32, (), False)


def test_every_leaf_is_an_array_with_a_buffer_of_its_own() -> None:
    state = TrainState.create({"w": jnp.ones(2)}, optax.adam(1e-3), jax.random.key(0))
    leaves = jax.tree.leaves(state)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    jax.jit(lambda s: s.replace(step=s.step + 1), donate_argnums=0)(state)
    assert all(leaf.is_deleted() for leaf in leaves)


def test_the_guard_is_one_array() -> None:
    assert [leaf.shape for leaf in jax.tree.leaves(GuardState.create())] == [(4,)]


def test_a_dynamic_scale_is_in_the_same_array() -> None:
    guard = GuardState.create(15)
    assert (guard.counts.shape, guard.counts.dtype) == ((6,), jnp.int32)
    assert (int(guard.scale_exponent), int(guard.good_steps), int(guard.skipped)) == (15, 0, 0)
    assert guard.keeps_scale
    assert not GuardState.create().keeps_scale


def test_a_guard_begins_with_nothing_refused() -> None:
    guard = GuardState.create()
    assert (int(guard.skipped), int(guard.consecutive), int(guard.first)) == (0, 0, 0)


def test_a_state_can_be_made_from_shapes() -> None:
    shapes = jax.eval_shape(lambda: TrainState.create(PARAMS, optax.adam(1e-3), jax.random.key(0)))
    assert shapes.params["w"].shape == (2,)
    assert jnp.issubdtype(shapes.rng.dtype, jax.dtypes.prng_key)


def test_a_state_is_not_changed_but_replaced() -> None:
    state = TrainState.create(PARAMS, optax.sgd(0.1), jax.random.key(0))
    with pytest.raises(AttributeError):
        state.step = jnp.ones((), jnp.int32)  # type: ignore[misc]
    assert int(state.replace(step=state.step + 3).step) == 3
    assert int(state.step) == 0


@pytest.mark.parametrize(
    ("epochs_done", "step_in_epoch", "epoch"),
    [(0, 0, 1), (0, 5, 1), (1, 0, 1), (1, 1, 2), (3, 9, 4)],
)
def test_epochs_count_from_1_and_end_with_their_last_step(
    epochs_done: int, step_in_epoch: int, epoch: int
) -> None:
    assert Progress(epochs_done=epochs_done, step_in_epoch=step_in_epoch).epoch == epoch


PROGRESS = Progress(
    step=2**40,
    epochs_done=2,
    step_in_epoch=3,
    examples=4,
    skipped=5,
    validations=6,
    best={
        "val/loss": {"value": 0.25, "step": 7, "epoch": 2},
        "loss": {"value": 0.5, "step": 3, "epoch": 1, "metrics": {"loss": 0.5, "b": float("inf")}},
    },
)


@pytest.mark.parametrize("progress", [Progress(), PROGRESS])
def test_progress_survives_json(progress: Progress) -> None:
    assert Progress.from_json(json.loads(json.dumps(progress.to_json()))) == progress


def test_written_progress_is_independent_of_the_one_that_goes_on() -> None:
    progress = Progress(best={"loss": {"value": 1.0}})
    data = progress.to_json()
    restored = Progress.from_json(data)
    progress.best["loss"]["value"] = 2.0
    data["best"]["loss"]["value"] = 3.0
    assert restored.best["loss"]["value"] == 1.0


def test_where_the_best_checkpoint_is_now_is_not_saved() -> None:
    progress = Progress(best_checkpoints={"loss": "/runs/a/checkpoints/3"})
    assert "best_checkpoints" not in progress.to_json()
    assert progress == Progress.from_json(progress.to_json()) == Progress()
    assert progress.best_checkpoints == {"loss": "/runs/a/checkpoints/3"}


def test_two_runs_share_no_best_value() -> None:
    first, second = Progress(), Progress()
    first.best["loss"] = {"value": 1.0}
    assert second.best == {}


@pytest.mark.parametrize("wrong", [-1, 1.0, "1", None, True, [1]])
@pytest.mark.parametrize("name", ["step", "epochs_done", "examples", "validations"])
def test_a_damaged_number_is_an_error_that_names_it(name: str, wrong: Any) -> None:
    message = rf"{name}.*expected whole numbers >= 0.*is damaged; use another"
    with pytest.raises(CheckpointError, match=message):
        Progress.from_json({**PROGRESS.to_json(), name: wrong})


def test_missing_numbers_are_all_named() -> None:
    data = PROGRESS.to_json()
    del data["step"], data["skipped"]
    with pytest.raises(CheckpointError, match=r"\{'step': None, 'skipped': None\}"):
        Progress.from_json(data)


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        3,
        [],
        {"loss": 3},
        {"loss": None},
        {"loss": {"value": 1.0, "metrics": 3}},
        {"loss": {"value": 1.0, "metrics": {"loss": "low"}}},
    ],
)
def test_damaged_best_values_are_an_error(wrong: Any) -> None:
    with pytest.raises(CheckpointError, match="progress in the checkpoint has.*best"):
        Progress.from_json({**PROGRESS.to_json(), "best": wrong})


def test_what_a_later_version_has_added_is_left_out() -> None:
    assert Progress.from_json({**PROGRESS.to_json(), "new": 1}) == PROGRESS
