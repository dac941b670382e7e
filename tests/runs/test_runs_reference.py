"""Does a trainer take the steps that a hand-written loop takes? On one device and on eight."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo

import xtrainer as xt

MOMENTUM = zoo.optimizer("sgd", lr=0.1, momentum=0.9)
BY_HAND = optax.sgd(0.1, momentum=0.9)
LOSSES = [zoo.Classifier, zoo.ScalarClassifier, zoo.PairClassifier]


@functools.cache
def hand_step(model: zoo.MLP) -> Callable[..., Any]:
    """Returns one step of plain Flax and Optax."""

    def loss(params: Any, rest: Any, batch: Any) -> Any:
        logits, updated = model.apply(
            {"params": params, **rest}, batch.inputs, train=True, mutable=list(rest)
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        weights = jnp.ones_like(losses) if batch.mask is None else batch.mask
        return (losses * weights).sum() / weights.sum(), updated

    @jax.jit
    def step(params: Any, rest: Any, opt_state: Any, batch: Any) -> Any:
        grads, rest = jax.grad(loss, has_aux=True)(params, rest, batch)
        updates, opt_state = BY_HAND.update(grads, opt_state)
        return optax.apply_updates(params, updates), rest, opt_state

    return step


def by_hand(variables: Any, batches: Iterable[Any], model: zoo.MLP) -> Any:
    """Returns the variables after a plain loop over the batches, one by one."""
    params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    opt_state = BY_HAND.init(params)
    for batch in batches:
        params, rest, opt_state = hand_step(model)(params, rest, opt_state, batch)
    return {"params": params, **rest}


def variables_of(trainer: Any) -> Any:
    return zoo.host({"params": trainer.state.params, **trainer.state.mutable_variables})


def check(
    trainer_class: type, make_loader: Callable[[], Any], epochs: int, model: Any = None, **more: Any
) -> None:
    """Fails unless a trainer ends where the loop by hand ends."""
    trainer = zoo.make_trainer(trainer_class, model=model, optimizer=MOMENTUM, **more)
    batches = make_loader()
    expected = by_hand(
        variables_of(trainer),
        [batch for _ in range(epochs) for batch in batches],
        zoo.MLP(**(model or {})),
    )
    start = variables_of(trainer)
    trainer.train_model(make_loader(), num_epochs=epochs)
    zoo.assert_close(variables_of(trainer), expected)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), start, variables_of(trainer))
    assert max(jax.tree.leaves(moved)) > 0.01


@pytest.mark.parametrize("count", [1, 8])
def test_ten_steps_are_those_of_a_loop_by_hand(count: int) -> None:
    check(zoo.Classifier, lambda: zoo.loader(80, shuffle=True, seed=3), 2, mesh=zoo.devices(count))


def test_ten_steps_are_those_of_a_loop_by_hand_with_sharded_parameters() -> None:
    parallel = xt.ParallelConfig(data_axis_size=2, fsdp_axis_size=4, fsdp_min_weight_size=0)
    check(zoo.Classifier, lambda: zoo.loader(80), 2, parallel=parallel)


@pytest.mark.parametrize(("count", "scan"), [(1, False), (8, True)])
def test_accumulated_steps_are_those_of_a_loop_by_hand(count: int, scan: bool) -> None:
    steps = {"gradient_accumulate_steps": 2, "gradient_accumulate_scan": scan}
    check(zoo.Classifier, lambda: zoo.loader(64), 1, mesh=zoo.devices(count), **steps)


@pytest.mark.parametrize(
    ("trainer_class", "count", "accumulate"),
    [
        (zoo.Classifier, 1, 4),
        (zoo.Classifier, 8, 1),
        (zoo.Classifier, 8, 4),
        (zoo.ScalarClassifier, 1, 1),
        (zoo.ScalarClassifier, 8, 4),
    ],
)
def test_a_ragged_last_batch_counts_as_what_it_is(
    trainer_class: type, count: int, accumulate: int
) -> None:
    # 11 rows divide neither by the devices nor by the micro-batches.
    check(
        trainer_class,
        lambda: zoo.loader(43),
        2,
        mesh=zoo.devices(count),
        gradient_accumulate_steps=accumulate,
    )


def test_a_last_batch_of_one_row_counts_as_one_row() -> None:
    check(zoo.ScalarClassifier, lambda: zoo.loader(17), 1, gradient_accumulate_steps=2)


def test_batch_norm_sees_no_padding() -> None:
    check(zoo.Classifier, lambda: zoo.loader(43), 2, {"batch_norm": True})


def test_a_remainder_that_micro_batches_do_not_divide_keeps_the_batch_statistics() -> None:
    trainer = zoo.make_trainer(
        model={"batch_norm": True}, mesh=zoo.devices(1), gradient_accumulate_steps=2
    )
    loader = zoo.loader(27)  # the second batch has 11 rows: no two micro-batches of one size
    variances = []
    for steps in (1, 2):
        trainer.train_model(loader, num_train_steps=steps)
        collections = zoo.host(trainer.state.mutable_variables)
        variances.append(collections["batch_stats"]["BatchNorm_0"]["var"])
    # One update with the decay 0.9 for 11 rows; eleven with no variance would leave a third.
    assert (variances[1] > 0.9 * variances[0]).all()


def test_weights_that_differ_between_micro_batches_and_devices_are_exact() -> None:
    data = zoo.classification_data(43)
    weights = np.random.default_rng(1).uniform(0, 2, 43) * (np.arange(43) % 3 > 0)
    data = data.replace(mask=weights.astype(np.float32))
    check(
        WeightedClassifier,
        lambda: xt.ArrayLoader(data, batch_size=16),
        2,
        batch=xt.Batch(data.inputs[:16], data.targets[:16], data.mask[:16]),
        gradient_accumulate_steps=2,
    )


def test_three_forms_of_one_loss_give_the_same_parameters() -> None:
    ends = []
    for trainer_class in LOSSES:
        trainer = zoo.make_trainer(trainer_class, mesh=zoo.devices(1))
        trainer.train_model(zoo.loader(32), num_epochs=1)
        ends.append(variables_of(trainer))
    for other in ends[1:]:
        zoo.assert_close(other, ends[0], rtol=1e-6, atol=1e-6)


class WeightedClassifier(zoo.Classifier):
    """Weighs every example by the batch's mask."""

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        loss, _ = super().loss_function(params, apply_fn, batch, rng, train)
        return {"value": loss, "count": batch.mask}, ({}, {})
