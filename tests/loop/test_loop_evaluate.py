"""One pass over a dataset, exact and harmless."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.errors import LoaderError
from xtrainer.loop import run_evaluation


def ids_of(batches: list[probes.Batch]) -> np.ndarray:
    return np.concatenate([batch["ids"] for batch in batches])


@pytest.mark.parametrize("sizes", [(4, 4, 4), (4, 3), (4, 1, 2, 4), (1,), (7, 2, 7)])
def test_a_mean_is_over_examples_whatever_the_batches(
    stage: probes.Repeatable, sizes: tuple[int, ...]
) -> None:
    trainer = stage.begin()
    batches = [probes.one(number, rows) for number, rows in enumerate(sizes, start=1)]
    assert trainer.eval_model(batches)["id"] == pytest.approx(ids_of(batches).mean(), rel=1e-6)


def test_the_loss_equals_numpy(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    batches = [probes.one(1, 4), probes.one(2, 3)]
    variables = {"params": trainer.state.params, **trainer.state.mutable_variables}
    losses = []
    for batch in batches:
        logits = np.asarray(trainer.model.apply(variables, batch["inputs"], train=False))
        logits = logits.astype(np.float64)
        top = logits.max(-1, keepdims=True)
        normalizer = np.log(np.exp(logits - top).sum(-1)) + top[:, 0]
        losses.append(normalizer - logits[np.arange(len(logits)), batch["targets"]])
    expected = np.concatenate(losses).mean()
    assert trainer.eval_model(batches)["loss"] == pytest.approx(expected, rel=1e-6)


def test_several_sets_have_their_names_before_their_metrics(stage: probes.Repeatable) -> None:
    sets = {"easy": probes.numbered(2), "hard": probes.numbered(3, first=10)}
    found = stage.begin().eval_model(sets)
    assert found.keys() == {"easy_loss", "easy_id", "hard_loss", "hard_id"}
    assert (found["easy_id"], found["hard_id"]) == (1.5, 11.0)


def test_an_evaluation_changes_nothing(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    before = probes.learned(trainer)
    trainer.eval_model(probes.numbered(3))
    probes.assert_same_course(probes.learned(trainer), before)


def test_an_evaluation_can_be_repeated(stage: probes.Repeatable) -> None:
    trainer, batches = stage.begin(), probes.numbered(3)
    assert trainer.eval_model(batches) == trainer.eval_model(batches)


def test_an_iterator_is_evaluated_whole(stage: probes.Repeatable) -> None:
    assert stage.begin().eval_model(probes.generate(probes.numbered(5)))["id"] == 3.0


def test_trying_out_the_evaluation_takes_nothing_from_an_iterator(stage: probes.Repeatable) -> None:
    trainer, batches = stage.begin(), probes.generate(probes.numbered(5))
    trainer.test_eval_function(batches)
    assert trainer.eval_model(batches)["id"] == 3.0


@pytest.mark.parametrize("empty", [[], iter(())])
def test_an_empty_set_is_an_error_with_its_name(stage: probes.Repeatable, empty: Any) -> None:
    with pytest.raises(LoaderError, match="'val' loader gave no batch to evaluate"):
        stage.begin().eval_model(empty)


def test_an_empty_one_of_several_sets_is_named(stage: probes.Repeatable) -> None:
    with pytest.raises(LoaderError, match="'val/hard' loader gave no batch"):
        stage.begin().eval_model({"easy": probes.numbered(1), "hard": []})


def test_trying_out_an_empty_set_is_an_error_with_its_name(stage: probes.Repeatable) -> None:
    with pytest.raises(LoaderError, match="'val' loader is empty"):
        stage.begin().test_eval_function([])


def test_an_error_of_the_loader_is_raised_and_says_where(stage: probes.Repeatable) -> None:
    def broken() -> Iterator[probes.Batch]:
        yield from probes.numbered(2)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk") as caught:
        stage.begin().eval_model(broken())
    assert "while reading batch 3 of the 'val' loader" in caught.value.__notes__


def test_a_metric_that_no_batch_measured_is_nan() -> None:
    class Rare(zoo.Classifier):
        def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
            loss, (_, mutable) = super().loss_function(params, apply_fn, batch, rng, train)
            return loss, ({"rare": {"value": loss, "count": jnp.zeros_like(loss)}}, mutable)

    trainer = zoo.make_trainer(Rare, mesh=zoo.devices(1))
    found = trainer.eval_model([zoo.classification_data(8)])
    assert np.isnan(found["rare"]) and np.isfinite(found["loss"])


def test_metrics_are_postprocessed(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = stage.begin()
    double = lambda metrics: {"twice": 2 * metrics["id"]}  # noqa: E731
    monkeypatch.setattr(trainer, "get_metric_postprocess_fn", lambda: double)
    assert trainer.eval_model(probes.numbered(3)) == {"twice": 4.0}


def test_a_subclass_may_replace_the_pass(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, seen = stage.begin(), []
    original = trainer._run_model_eval

    def spied(source: Any, mode: str = "", epoch_idx: int = -1) -> Any:
        seen.append((source.name, mode, epoch_idx))
        return original(source, mode, epoch_idx)

    monkeypatch.setattr(trainer, "_run_model_eval", spied)
    sets = {"a": probes.numbered(1), "b": probes.numbered(1)}
    run_evaluation(trainer, trainer.sources.of_sets(sets, "val"), "val", 7)
    assert seen == [("val/a", "val a", 7), ("val/b", "val b", 7)]


def test_the_host_waits_for_the_device_in_a_long_evaluation(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = stage.begin(max_steps_in_flight=3)
    unread, most = [0], []
    executor = trainer.compiled_eval_step

    class Ticket:
        def block_until_ready(self) -> None:
            unread[0] -= 1

    def counted(*args: Any) -> Any:
        unread[0] += 1
        most.append(unread[0])
        return executor(*args)[0], Ticket()

    for name in ("new_window", "programs", "flatten"):
        setattr(counted, name, getattr(executor, name))
    monkeypatch.setattr(trainer, "compiled_eval_step", counted)
    trainer.eval_model(probes.numbered(9))
    assert most == [1, 2, 3, 4, 4, 4, 4, 4, 4]


def test_evaluation_logs_under_its_mode(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    metrics = trainer.eval_model(probes.numbered(2), mode="held_out", epoch_idx=3)
    assert trainer.logger.all == [("held_out", 0, 3, metrics)]


def test_random_numbers_differ_from_batch_to_batch_and_repeat() -> None:
    class Noisy(xt.TrainerModule):
        model_class = zoo.MLP

        def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
            rngs = {"dropout": rng}
            logits = apply_fn({"params": params}, batch.inputs, train=True, rngs=rngs)
            return logits.sum(-1), ({}, {})

    trainer = zoo.make_trainer(Noisy, model={"dropout": 0.5}, mesh=zoo.devices(1))
    batch = zoo.classification_data(8)
    once, twice = trainer.eval_model([batch]), trainer.eval_model([batch, batch])
    assert twice != once
    assert trainer.eval_model([batch, batch]) == twice
