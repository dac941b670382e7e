"""Does an evaluation give the mean over the examples, whatever the batches and the devices?"""

from typing import Any

import jax
import numpy as np
import pytest
import zoo

import xtrainer as xt
from xtrainer.errors import LoaderError
from xtrainer.loop import evaluate_loader
from xtrainer.metrics.accumulate import COUNT

DATA = zoo.classification_data(40, seed=5)
MOST_FIRST = range(40, 0, -1)


def exact(params: Any, rows: int) -> dict[str, float]:
    """Returns loss and accuracy of the first rows, by NumPy in float64."""
    layers = zoo.host(params)
    first, second = (
        {name: leaf.astype(np.float64) for name, leaf in layers[layer].items()}
        for layer in ("Dense_0", "Dense_1")
    )
    hidden = np.maximum(DATA.inputs[:rows] @ first["kernel"] + first["bias"], 0)
    logits = hidden @ second["kernel"] + second["bias"]
    targets = DATA.targets[:rows]
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(rows), targets]
    return {"loss": losses.mean(), "accuracy": (logits.argmax(1) == targets).mean()}


def batches(rows: int, size: int) -> list[xt.Batch]:
    """Returns the first rows in batches of a size."""
    return [
        xt.Batch(DATA.inputs[start:stop], DATA.targets[start:stop])
        for start in range(0, rows, size)
        for stop in [min(start + size, rows)]
    ]


@pytest.fixture(scope="module", params=[1, 2, 8], ids="{}_devices".format)
def trainer(request: pytest.FixtureRequest) -> Any:
    """Gives a trainer that has learned a little, on one device, on two and on eight."""
    trainer = zoo.make_trainer(mesh=zoo.devices(request.param))
    trainer.train_model(zoo.loader(32), num_epochs=1)
    return trainer


@pytest.fixture(scope="module")
def scalar_trainer() -> Any:
    return zoo.make_trainer(zoo.ScalarClassifier, mesh=zoo.devices(8))


@pytest.mark.parametrize("size", [16, 5, 8])
def test_any_number_of_examples_gives_their_mean(trainer: Any, size: int) -> None:
    with zoo.compilations() as compiled:
        for rows in MOST_FIRST:
            found = trainer.eval_model(batches(rows, size), "val", 1)
            assert found == pytest.approx(exact(trainer.state.params, rows), rel=1e-6, abs=1e-6)
    assert compiled["eval_step"] <= 1


def test_any_number_of_examples_is_counted_as_what_it_is(trainer: Any) -> None:
    executor, prepare = trainer.compiled_eval_step, trainer.prepare_eval_batch
    for rows in MOST_FIRST:
        source = trainer.sources.of(batches(rows, 16), "counted")
        window = evaluate_loader(trainer, source, executor, prepare, "counted")
        assert window.packed[:, COUNT].tolist() == [rows, rows]  # of the loss and the accuracy


@pytest.mark.parametrize("rows", [1, 17, 40])
def test_any_batch_size_gives_the_mean_of_the_examples(trainer: Any, rows: int) -> None:
    expected = exact(trainer.state.params, rows)
    with zoo.compilations() as compiled:
        for size in range(16, 0, -1):
            found = trainer.eval_model(batches(rows, size), "val", 1)
            assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert compiled["eval_step"] <= 1


def test_metrics_that_are_means_already_are_weighted_by_the_rows(scalar_trainer: Any) -> None:
    # One compilation for each number of rows; some divide over the devices, some do not.
    for rows, size in [(1, 16), (5, 16), (16, 16), (21, 16), (32, 16), (40, 16), (40, 13), (7, 2)]:
        found = scalar_trainer.eval_model(batches(rows, size), "val", 1)
        assert found == pytest.approx(exact(scalar_trainer.state.params, rows), rel=1e-6, abs=1e-6)


def test_a_larger_batch_than_before_is_taken(trainer: Any) -> None:
    whole = trainer.eval_model(batches(40, 40), "val", 1)
    assert whole == pytest.approx(exact(trainer.state.params, 40), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("empty", [[], {"a": batches(8, 8), "b": []}])
def test_an_empty_set_is_an_error(trainer: Any, empty: Any) -> None:
    with pytest.raises(LoaderError, match="gave no batch to evaluate"):
        trainer.eval_model(empty, "val", 1)


def test_an_empty_validation_set_is_an_error_before_training(scalar_trainer: Any) -> None:
    with pytest.raises(LoaderError, match="'val' loader is empty, expected a batch"):
        scalar_trainer.train_model(zoo.loader(16), [], num_epochs=1)
    assert scalar_trainer.global_step == 0


def test_several_sets_are_evaluated_apart_and_named(trainer: Any) -> None:
    found = trainer.eval_model({"all": batches(40, 16), "few": batches(3, 16)}, "val", 1)
    expected = {
        f"{name}_{metric}": value
        for name, rows in (("all", 40), ("few", 3))
        for metric, value in exact(trainer.state.params, rows).items()
    }
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_an_evaluation_leaves_the_state_as_it_is(trainer: Any) -> None:
    state, before = trainer.state, zoo.host(trainer.state)
    trainer.eval_model(batches(40, 16), "val", 1)
    assert trainer.state is state
    zoo.assert_same(state, before)


def test_an_evaluation_is_logged_under_its_set(tmp_path: Any) -> None:
    trainer = zoo.make_trainer(mesh=zoo.devices(1), logger=zoo.file_logger(tmp_path))
    found = trainer.eval_model(batches(40, 16), "holdout", 7)
    trainer.logger.finalize("completed")
    (row,) = xt.read_metrics(tmp_path)
    assert (row["set"], row["step"], row["epoch"], row["metrics"]) == ("holdout", 0, 7, found)


def test_the_key_of_a_batch_is_its_own_and_comes_again() -> None:
    trainer = zoo.make_trainer(DrawnMetric, mesh=zoo.devices(1))
    draws = [trainer.eval_model(batches(rows, 16), "val", 1)["draw"] for rows in (16, 32, 32)]
    assert draws[1] == draws[2]  # the same evaluation twice
    assert draws[0] != pytest.approx(draws[1], abs=1e-3)  # the second batch drew something else


def test_dropout_in_evaluation_is_reproducible_and_follows_its_seed() -> None:
    losses = []
    for seed_eval in (0, 1):
        trainer = zoo.make_trainer(
            AlwaysDropping, {"dropout": 0.5}, mesh=zoo.devices(1), seed_eval=seed_eval
        )
        first, second = (trainer.eval_model(batches(40, 16), "val", 1)["loss"] for _ in range(2))
        assert first == second
        losses.append(first)
    assert losses[0] != losses[1]


class DrawnMetric(zoo.Classifier):
    """Reports what its key draws."""

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        loss, _ = super().loss_function(params, apply_fn, batch, rng, train)
        draw = jax.numpy.broadcast_to(jax.random.normal(rng), loss.shape)
        return loss, ({"draw": draw}, {})


class AlwaysDropping(zoo.Classifier):
    """Keeps dropout on in evaluation, as for an estimate of uncertainty."""

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        return super().loss_function(params, apply_fn, batch, rng, True)
