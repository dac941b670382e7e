"""Can a batch be any tree of arrays, and the class of the design be used as it stands?"""

from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import optax
import pytest
import zoo

import xtrainer as xt


class Classifier(xt.TrainerModule):
    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        logits = apply_fn({"params": params}, batch.inputs, train=train, rngs={"dropout": rng})
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        return loss, ({"accuracy": logits.argmax(-1) == batch.targets}, {})


class Pair(NamedTuple):
    inputs: Any
    targets: Any


@flax.struct.dataclass
class Record:
    inputs: Any
    targets: Any


class ByKey(xt.TrainerModule):
    """Reads batches by key, as dictionaries are."""

    model_class = zoo.MLP

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        logits = apply_fn({"params": params}, batch["inputs"], train=train)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]), ({}, {})


class ByPlace(xt.TrainerModule):
    """Reads batches by place, as tuples are."""

    model_class = zoo.MLP

    @staticmethod
    def batch_to_input(batch: Any) -> Any:
        return batch[0][:, ::-1]

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        logits = apply_fn({"params": params}, batch[0], train=train)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]), ({}, {})


class TwoTowers(nn.Module):
    """A model of two inputs."""

    @nn.compact
    def __call__(self, left: jax.Array, right: jax.Array, train: bool = False) -> jax.Array:
        return nn.Dense(3)(left) + nn.Dense(3)(right)


class TwoInputs(xt.TrainerModule):
    model_class = TwoTowers

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        logits = apply_fn({"params": params}, *batch["inputs"], train=train)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]), ({}, {})


def end_of(trainer_class: type, make_batch: Any, example: Any = None) -> Any:
    """Returns the parameters after a pass over 40 rows, the last batch of eight."""
    data = zoo.classification_data(40)
    batch = make_batch(data.inputs, data.targets)
    example = batch if example is None else example
    trainer = zoo.make_trainer(trainer_class, batch=example, mesh=zoo.devices(1))
    loader = xt.ArrayLoader(batch, batch_size=16)
    trainer.train_model(loader, num_epochs=1)
    return zoo.host(trainer.state.params)


@pytest.fixture(scope="module")
def expected() -> Any:
    return end_of(zoo.Classifier, xt.Batch)


def test_the_class_of_the_design_trains_as_it_stands() -> None:
    data = zoo.classification_data(64)
    trainer = Classifier(
        xt.TrainerConfig(enable_progress_bar=False, logger=None),
        xt.ModelConfig(model_class=zoo.MLP, model_config={"dropout": 0.1}),
        xt.OptimizerConfig(name="adamw", scheduler=xt.SchedulerConfig(lr=0.02)),
        xt.Batch(data.inputs[:16], data.targets[:16]),
    )
    results = trainer.train_model(
        zoo.loader(64, shuffle=True), zoo.loader(64), zoo.loader(64), num_epochs=12
    )
    assert results["test"]["accuracy"] > 0.85
    assert results["val_epoch_12"]["loss"] < 0.7 * results["val_epoch_1"]["loss"]


@pytest.mark.parametrize(
    ("trainer_class", "make_batch"),
    [
        (ByKey, lambda x, y: {"inputs": x, "targets": y}),
        (ByPlace, lambda x, y: (x, y)),
        (zoo.Classifier, Pair),
        (zoo.Classifier, Record),
    ],
    ids=["dict", "tuple", "NamedTuple", "struct"],
)
def test_a_batch_may_be_any_tree(trainer_class: type, make_batch: Any, expected: Any) -> None:
    zoo.assert_same(end_of(trainer_class, make_batch), expected)


def test_several_inputs_are_given_as_a_tuple() -> None:
    def make_batch(x: Any, y: Any) -> Any:
        return {"inputs": (x[:, :1], x[:, 1:]), "targets": y}

    params = end_of(TwoInputs, make_batch)
    assert {k: v["kernel"].shape for k, v in params.items()} == {
        "Dense_0": (1, 3),
        "Dense_1": (3, 3),
    }


def test_the_rows_of_the_example_do_not_matter(expected: Any) -> None:
    example = jax.eval_shape(lambda: zoo.classification_data(100))
    zoo.assert_same(end_of(zoo.Classifier, xt.Batch, example), expected)


def test_rows_of_the_example_that_divide_nothing_do_not_matter() -> None:
    trainer = zoo.make_trainer(
        batch=zoo.classification_data(3), gradient_accumulate_steps=2, mesh=zoo.devices(8)
    )
    trainer.train_model(zoo.loader(32), zoo.loader(5), num_epochs=1)
    assert trainer.global_step == 2


def test_lists_of_arrays_on_the_device_are_loaders_too(expected: Any) -> None:
    trainer = zoo.make_trainer(mesh=zoo.devices(1))
    batches = [jax.device_put(batch) for batch in zoo.loader(40)]
    trainer.train_model(batches, num_epochs=1)
    zoo.assert_close(trainer.state.params, expected)
