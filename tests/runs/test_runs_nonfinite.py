"""Is a run untouched by what is not finite, wherever it comes from, under every policy?"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.loop import StopReason
from xtrainer.types import PyTree

ROWS, BAD, STEPS = 16, 5, 9
LOSS, GRADIENT, UPDATE, METRIC = 1, 2, 3, 4
PLACES = {
    "an example": (3,),
    "a micro-batch": (4, 5, 6, 7),
    "a device's shard": (6, 7),
    "every example": tuple(range(ROWS)),
}
FLAGS = {"the loss": LOSS, "a gradient": GRADIENT, "an update": UPDATE, "a metric": METRIC}
LAYOUTS = {"whole": (1, 1), "accumulated": (1, 4), "eight devices": (8, 1)}
SAVING = xt.ModelCheckpointConfig(every_n_steps=2, every_n_epochs=99, max_to_keep=None)


@jax.custom_vjp
def poisoned(bias: jax.Array, flag: jax.Array) -> jax.Array:
    """Returns the parameter; where the flag is set, one number of its gradient is NaN."""
    return bias


def _backward(flag: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None]:
    first = jnp.arange(gradient.size) == 0
    return jnp.where(first & flag, jnp.nan, gradient), None


poisoned.defvjp(lambda bias, flag: (bias, flag), _backward)


class Planted(xt.TrainerModule):
    """A classifier into which ``batch["plant"]`` plants what is not finite."""

    model_class = zoo.MLP

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        plant = batch["plant"]
        bias = poisoned(params["Dense_1"]["bias"], (plant == GRADIENT).any())
        params = {**params, "Dense_1": {**params["Dense_1"], "bias": bias}}
        logits = apply_fn({"params": params}, batch["inputs"], train=train)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        loss = jnp.where(plant == UPDATE, loss * 1e6, loss)
        accuracy = jnp.where(plant == METRIC, jnp.nan, logits.argmax(-1) == batch["targets"])
        return jnp.where(plant == LOSS, jnp.inf, loss), ({"accuracy": accuracy}, {})


def fragile(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns an optimizer that gives NaN for one leaf where the gradient is large."""

    def update(grads: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        updates, new = optimizer.update(grads, state, params)
        large = optax.global_norm(grads) > 1e3
        bad = jnp.where(large, jnp.nan, updates["Dense_0"]["bias"])
        return {**updates, "Dense_0": {**updates["Dense_0"], "bias": bad}}, new

    return optax.GradientTransformation(optimizer.init, update)


def batch(number: int, what: str = "") -> probes.Batch:
    """Returns the batch of a number, with something planted."""
    data = probes.one(number, ROWS)
    del data["ids"]
    for row in PLACES.get(what, ()):
        data["inputs"][row, number % 4] = (np.nan, np.inf, -np.inf)[row % 3]
    data["plant"] = np.zeros(ROWS, np.int32)
    data["plant"][7] = FLAGS.get(what, 0)
    return data


@pytest.fixture(scope="module", params=[*LAYOUTS])
def trainers(request: pytest.FixtureRequest) -> dict[str, probes.Repeatable]:
    """A trainer for each policy, in one layout."""
    devices, accumulate = LAYOUTS[request.param]

    def make(policy: str) -> probes.Repeatable:
        return probes.Repeatable(
            probes.traced(
                trainer_class=Planted,
                model={"width": 8},
                optimizer=fragile(optax.adamw(1e-2, weight_decay=0.1)),
                batch=batch(0),
                mesh=zoo.devices(devices),
                gradient_accumulate_steps=accumulate,
                nonfinite_policy=policy,
                max_consecutive_nonfinite=1 if policy == "rollback" else 3,
            )
        )

    return {policy: make(policy) for policy in ("stop", "skip", "rollback")}


def train(stage: probes.Repeatable, folder: Path, what: str, numbers: Any, steps: int) -> Any:
    trainer = stage.begin(SAVING, folder=folder, every=1)
    data = [batch(number, what if number == BAD else "") for number in numbers]
    trainer.train_model(data, num_train_steps=steps)
    return trainer


def learns(trainer: Any) -> Any:
    """Returns all of the state that learns, of which the count of steps is no part."""
    return zoo.host((trainer.state.params, trainer.state.opt_state))


@pytest.fixture(scope="module")
def clean(
    trainers: dict[str, probes.Repeatable], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any]:
    """What has been learned before the bad batch, and in the end without it."""
    folder, stage = tmp_path_factory.mktemp("clean"), trainers["stop"]
    good = [n for n in range(1, STEPS + 1) if n != BAD]
    before = learns(train(stage, folder / "before", "", range(1, 10), BAD - 1))
    return before, learns(train(stage, folder / "without", "", good, STEPS - 1))


@pytest.mark.parametrize("what", [*PLACES, *(name for name in FLAGS if name != "a metric")])
def test_the_state_takes_nothing_of_it(
    trainers: dict[str, probes.Repeatable], clean: tuple[Any, Any], tmp_path: Path, what: str
) -> None:
    before, without = clean
    stopped = train(trainers["stop"], tmp_path / "stop", what, range(1, STEPS + 1), STEPS)
    assert (stopped.stop_reason, stopped.global_step) == (StopReason.NONFINITE, BAD - 1)
    zoo.assert_same(learns(stopped), before)

    skipped = train(trainers["skip"], tmp_path / "skip", what, range(1, STEPS + 1), STEPS)
    assert (skipped.stop_reason, skipped.progress.skipped) == (StopReason.FINISHED, 1)
    zoo.assert_same(learns(skipped), without)

    back = train(trainers["rollback"], tmp_path / "back", what, range(1, STEPS + 1), STEPS - 1)
    assert back.progress.skipped_batches == {(0, BAD)}
    zoo.assert_same(learns(back), without)
    assert int(back.state.step) == STEPS - 1


def test_a_metric_that_is_not_finite_touches_nothing_but_its_row(
    trainers: dict[str, probes.Repeatable], tmp_path: Path
) -> None:
    clean = learns(train(trainers["stop"], tmp_path / "clean", "", range(1, 10), STEPS))
    for policy, stage in trainers.items():
        trainer = train(stage, tmp_path / policy, "a metric", range(1, STEPS + 1), STEPS)
        assert (trainer.stop_reason, trainer.progress.skipped) == (StopReason.FINISHED, 0)
        zoo.assert_same(learns(trainer), clean)
        rows = zoo.rows_of(tmp_path / policy, "train")
        bad = [s for s, row in rows.items() if not np.isfinite(row["accuracy_mean"])]
        assert bad == [BAD]
