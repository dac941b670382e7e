"""Are predictions one row per example, in order, whatever the batches, the padding and the mesh?"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.errors import LoaderError, PredictionError
from xtrainer.step import PredictExecutor

ALL = probes.examples(40)


def batches(rows: int, size: int) -> list[dict[str, np.ndarray]]:
    """Returns the first rows in batches of a size, without targets."""
    data = {"inputs": ALL["inputs"][:rows], "ids": ALL["ids"][:rows]}
    return [{k: x[at : at + size] for k, x in data.items()} for at in range(0, rows, size)]


def logits_and_ids(params: Any, apply_fn: Any, batch: Any, rng: Any) -> Any:
    logits = apply_fn({"params": params}, batch["inputs"], train=False)
    return {"logits": logits, "more": [batch["ids"], None, (logits > 0).any(-1)]}


def expected(trainer: Any, rows: int = 40) -> np.ndarray:
    """Returns the logits of the first rows, all at once on one device."""
    variables = zoo.host({"params": trainer.state.params, **trainer.state.mutable_variables})
    return np.asarray(trainer.model.apply(variables, ALL["inputs"][:rows], train=False))


@pytest.fixture(scope="module", params=[1, 2, 8], ids="{}_devices".format)
def trainer(request: pytest.FixtureRequest) -> Any:
    """Gives a trainer of a model with batch statistics, on one device, on two and on eight."""
    return probes.traced(batch=probes.one(0, 8), mesh=zoo.devices(request.param))


@pytest.fixture(scope="module")
def one() -> Any:
    """Gives a trainer on one device, which never learns."""
    return probes.traced()


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    """Gives one that does."""
    return probes.Repeatable(probes.traced())


@pytest.fixture
def make_predict(one: Any) -> Iterator[Any]:
    """Gives ``predict`` of a trainer on one device; fails where a thread is left."""
    yield one.predict
    assert probes.prefetch_threads() == []


@pytest.mark.parametrize("size", [8, 3, 1])
def test_any_number_of_examples_gives_as_many_rows_in_order(trainer: Any, size: int) -> None:
    logits = expected(trainer)
    with zoo.compilations() as compiled:
        for rows in range(40, 0, -1):
            found = trainer.predict(batches(rows, size), logits_and_ids)
            ids, nothing, positive = found["more"]
            assert ids.tolist() == list(range(rows)) and nothing is None
            np.testing.assert_allclose(found["logits"], logits[:rows], rtol=1e-5, atol=1e-6)
            assert positive.dtype == bool and positive.shape == (rows,)
    assert compiled["predict_step"] <= 1  # the largest size comes first and is the shape of all


def test_a_ragged_last_batch_takes_no_program_of_its_own(one: Any) -> None:
    def function(params: Any, apply_fn: Any, batch: Any, rng: Any) -> Any:
        return batch["ids"]

    with zoo.compilations() as compiled:
        for rows in (10, 11, 12):
            assert one.predict(batches(rows, 4), function).tolist() == list(range(rows))
        assert compiled["predict_step"] == 1
        assert one.predict(batches(9, 6), function).tolist() == list(range(9))
    assert compiled["predict_step"] == 2


def test_the_default_is_the_model_not_training(one: Any, make_predict: Any) -> None:
    found = make_predict(batches(7, 4))
    np.testing.assert_allclose(found, expected(one, 7), rtol=1e-5, atol=1e-6)
    assert isinstance(found, np.ndarray) and found.flags.writeable


class Doubling(probes.Traced):
    def predict_function(self, params: Any, apply_fn: Any, batch: Any, rng: Any) -> Any:
        return 2 * super().predict_function(params, apply_fn, batch, rng)

    @staticmethod
    def batch_to_input(batch: Any) -> Any:
        return (batch["inputs"],)  # a tuple stands for several arguments


def test_a_subclass_may_say_what_is_predicted(one: Any) -> None:
    twice = probes.traced(trainer_class=Doubling)
    np.testing.assert_allclose(
        twice.predict(batches(5, 4)), 2 * expected(one, 5), rtol=1e-5, atol=1e-6
    )


def test_batches_have_keys_of_their_own_and_the_same_each_time(make_predict: Any) -> None:
    def noise(params: Any, apply_fn: Any, batch: Any, rng: Any) -> Any:
        return jax.random.normal(rng, batch["ids"].shape)

    first, second = (make_predict(batches(6, 3), noise) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert len(set(first.tolist())) == 6


def test_nothing_but_the_own_loader_moves(stage: probes.Repeatable) -> None:
    """A run that predicts at every validation is the run that does not, bit for bit."""
    learned = []
    for predicts in (False, True):
        found: list[Any] = []

        def act(trainer: Any, *args: Any, found: list[Any] = found) -> None:
            before = trainer.sources.positions()["train"]
            found.append(
                trainer.predict(xt.ArrayLoader(probes.examples(6), 4), logits_and_ids)["more"][
                    0
                ].tolist()
            )
            assert trainer.sources.positions()["train"] == before

        trainer = stage.begin(*[probes.acting("on_validation_epoch_end", act)] * predicts)
        loader = xt.ArrayLoader(probes.examples(20), 4, shuffle=True)
        trainer.train_model(loader, probes.numbered(1), num_epochs=2)
        learned.append(probes.learned(trainer))
        assert found == [list(range(6))] * (2 * predicts)
    probes.assert_same_course(*learned)


def test_a_restored_model_predicts_the_same(
    stage: probes.Repeatable, one: Any, tmp_path: Path
) -> None:
    trainer = stage.begin(xt.ModelCheckpointConfig(monitor=None), folder=tmp_path)
    trainer.train_model(probes.numbered(2), num_epochs=1)
    again = probes.Traced.load_from_checkpoint(tmp_path, mesh=zoo.devices(1))
    found = again.predict(batches(6, 4))
    np.testing.assert_array_equal(found, trainer.predict(batches(6, 4)))
    assert np.abs(found - one.predict(batches(6, 4))).max() > 0  # it has learned


def test_batches_can_be_taken_one_by_one_and_left(one: Any, make_predict: Any) -> None:
    def ids(params: Any, apply_fn: Any, batch: Any, rng: Any) -> Any:
        return {"id": batch["ids"]}

    given = make_predict(batches(10, 4), ids, collect=False)
    assert [batch["id"].tolist() for batch in given] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    executor, prepare = one.compiled_predictions[ids]
    calls = []

    class Counted:
        new_window, flatten, programs = executor.new_window, executor.flatten, executor.programs

        def __call__(self, *args: Any) -> Any:
            calls.append(len(calls))
            return executor(*args)

    one.compiled_predictions[ids] = (Counted(), prepare)
    given = make_predict(batches(40, 4), ids, collect=False)
    assert calls == []
    assert next(given)["id"].tolist() == [0, 1, 2, 3]
    assert len(calls) == one.max_steps_in_flight + 1
    given.close()


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (lambda ids: ids.mean(), r"an array: \(\), expected arrays whose first axis is 4"),
        (lambda ids: {"a": ids, "b": ids[:1]}, r"returned b: \(1,\), expected"),
        (lambda ids: {}, "returned nothing, expected"),
    ],
)
def test_outputs_that_are_no_rows_are_named(make_predict: Any, outputs: Any, said: str) -> None:
    with pytest.raises(PredictionError, match=said):
        make_predict(batches(4, 4), lambda params, apply_fn, batch, rng: outputs(batch["ids"]))


def test_outputs_of_several_shapes_come_batch_by_batch_only(make_predict: Any) -> None:
    loader = [{"inputs": np.zeros((2, width), np.float32)} for width in (4, 6)]

    def echo(params: Any, apply_fn: Any, batch: Any, rng: Any) -> Any:
        return batch["inputs"]

    assert [part.shape for part in make_predict(loader, echo, collect=False)] == [(2, 4), (2, 6)]
    with pytest.raises(PredictionError, match=r"batch 2 have rows of float32\[6\].*collect=False"):
        make_predict(loader, echo)


@pytest.mark.parametrize("collect", [True, False])
def test_nothing_to_predict_is_an_error(make_predict: Any, collect: bool) -> None:
    with pytest.raises(LoaderError, match="gave no batch"):
        list(make_predict([], collect=collect))


def test_an_error_of_the_loader_names_the_batch(make_predict: Any) -> None:
    def broken() -> Iterator[Any]:
        yield batches(4, 4)[0]
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk") as caught:
        make_predict(broken())
    assert any("batch 2 of the 'predict' loader" in note for note in caught.value.__notes__)


def test_outputs_have_the_dtype_that_was_asked_for(one: Any) -> None:
    precision = xt.PrecisionConfig(compute_dtype="bfloat16", output_dtype="bfloat16")
    low = probes.traced(precision=precision)
    found = low.predict(batches(5, 4))
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(found.astype(np.float32), expected(one, 5), atol=0.05)


def test_an_uncompiled_step_gives_the_same(one: Any) -> None:
    slow = probes.traced(debug=True)
    with zoo.compilations() as compiled:
        found = slow.predict(batches(5, 4), logits_and_ids)
    np.testing.assert_allclose(found["logits"], expected(one, 5), rtol=1e-5, atol=1e-6)
    assert found["more"][0].tolist() == [0, 1, 2, 3, 4] and compiled["predict_step"] == 0


def test_a_mesh_with_a_tensor_axis_keeps_the_rows_in_order(one: Any) -> None:
    sizes = {"data_axis_size": 2, "fsdp_axis_size": 2, "model_axis_size": 2}
    rules = [("*/kernel", (None, "tp"))]
    parallel = xt.ParallelConfig(**sizes, fsdp_min_weight_size=1, param_rules=rules)
    model = {"width": 8, "classes": 4, "batch_norm": True}
    spread = probes.traced(model=model, batch=probes.one(0, 8), mesh=None, parallel=parallel)
    found = spread.predict(batches(13, 5), logits_and_ids)
    np.testing.assert_allclose(found["logits"], expected(spread, 13), rtol=1e-5, atol=1e-6)
    assert found["more"][0].tolist() == list(range(13))


def implicit() -> None:
    """Moves a host array to the device without saying so."""
    jax.jit(lambda x: x + 1)(np.ones(3, np.float32))


def test_transfers_are_guarded_in_a_step_and_free_for_who_takes_the_batches(
    one: Any, make_predict: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    implicit()  # compiled here, so that only the transfer is left
    monkeypatch.setattr("xtrainer.trainer.batches.feeds_host_batches", lambda layout: False)
    monkeypatch.setattr(one.prepare_train_batch, "feeds_host", False)  # as on an accelerator

    def ids(params: Any, apply_fn: Any, batch: Any, rng: Any) -> Any:
        return batch["ids"]

    for batch in make_predict(batches(20, 4), ids, collect=False):
        implicit()
        assert len(batch) == 4
    step = PredictExecutor.__call__
    monkeypatch.setattr(PredictExecutor, "__call__", lambda *args: (implicit(), step(*args))[1])
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        make_predict(batches(4, 4), ids)


def test_the_pure_step_needs_no_trainer(one: Any) -> None:
    step = jax.jit(xt.make_predict_step(logits_and_ids, one.model.apply))
    found = step(one.state, jax.tree.map(jnp.asarray, batches(5, 5)[0]))
    np.testing.assert_allclose(found["logits"], expected(one, 5), rtol=1e-5, atol=1e-6)
