"""Evaluations with averaged parameters: their numbers, what training keeps, what is saved."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.errors import ConfigError
from xtrainer.optim import averaged_params, with_average

DECAY = 0.8
OPTIMIZER = zoo.optimizer("adam", 0.05, ema_decay=DECAY)
VAL = probes.numbered(2, first=100)


@pytest.fixture(scope="module")
def averaging() -> probes.Repeatable:
    """A trainer with BatchNorm and dropout that keeps an average, and goes on after NaN."""
    return probes.Repeatable(probes.traced(optimizer=OPTIMIZER, nonfinite_policy="skip"))


def average_of(trainer: Any) -> Any:
    return zoo.host(averaged_params(trainer.state.opt_state, trainer.state.params))


def metrics_of(repeatable: probes.Repeatable, state: Any, params: Any) -> dict[str, float]:
    """Returns what an evaluation without the callback finds for some parameters."""
    trainer = repeatable.begin()
    places = jax.tree.map(lambda x: x.sharding, state.params)
    trainer.state = state.replace(params=jax.device_put(params, places))
    return trainer.eval_model(VAL)


def test_validations_are_of_the_average(averaging: probes.Repeatable) -> None:
    trainer = averaging.begin(xt.EMAConfig())
    results = trainer.train_model(probes.numbered(6), VAL, num_epochs=2)
    state, average = trainer.state, average_of(trainer)
    again = trainer.eval_model(VAL)
    assert results["val_epoch_2"] == again  # a user's own evaluation is of it, too
    assert metrics_of(averaging, state, average) == again
    raw = metrics_of(averaging, state, zoo.host(state.params))
    assert abs(raw["loss"] - again["loss"]) > 1e-3


def test_training_does_not_see_it(averaging: probes.Repeatable) -> None:
    def run(*callbacks: Any) -> Any:
        trainer = averaging.begin(*callbacks)
        trainer.train_model(probes.numbered(6), VAL, num_epochs=2)
        return probes.learned(trainer), trainer.logger.rows("train")

    (with_it, rows), (without, plain_rows) = run(xt.EMAConfig()), run()
    probes.assert_same_course(with_it, without)
    assert rows == plain_rows


@pytest.mark.parametrize("bad", [(), (3,), (1, 4, 5)])
def test_a_refused_step_adds_nothing(averaging: probes.Repeatable, bad: Sequence[int]) -> None:
    course: list[Any] = []

    def keep(trainer: Any, *args: Any) -> None:
        if trainer.global_step not in bad:
            course.append(zoo.host(trainer.state.params))

    trainer = averaging.begin(probes.acting("on_training_step", keep), xt.EMAConfig())
    trainer.train_model(probes.numbered(7, bad=bad), num_epochs=1)
    assert trainer.progress.skipped == len(bad)
    weights = DECAY ** np.arange(len(course))[::-1]
    mean = lambda *x: np.tensordot(weights / weights.sum(), np.stack(x), 1)  # noqa: E731
    zoo.assert_close(average_of(trainer), jax.tree.map(mean, *course), rtol=1e-5)
    assert int(trainer.state.opt_state.count) == 7 - len(bad)


def test_callbacks_find_the_trained_parameters_beside_the_average(
    averaging: probes.Repeatable,
) -> None:
    found: list[Any] = []

    def look(trainer: Any, *args: Any) -> None:
        found.append((trainer.state.params, trainer.evaluated_state().params))

    hooks = ("on_validation_epoch_start", "on_validation_epoch_end")
    trainer = averaging.begin(xt.EMAConfig(), *(probes.acting(hook, look) for hook in hooks))
    trainer.train_model(probes.numbered(3), VAL, num_epochs=1)
    for params, evaluated in found:
        assert params is trainer.state.params
        zoo.assert_same(evaluated, average_of(trainer))
    assert len(found) == 2


def test_after_an_evaluation_that_fails_the_state_is_that_of_training(
    averaging: probes.Repeatable,
) -> None:
    class Broken:
        def __iter__(self) -> Any:
            yield VAL[0]
            raise OSError("planted")

    trainer = averaging.begin(xt.EMAConfig())
    with pytest.raises(OSError, match="planted"):
        trainer.train_model(probes.numbered(3), Broken(), num_epochs=1)
    plain = averaging.begin()
    plain_params = plain.train_model(probes.numbered(3), num_epochs=1) or plain.state.params
    zoo.assert_same(trainer.state.params, plain_params)


def test_a_further_evaluation_is_of_the_average_wherever_it_stands(
    averaging: probes.Repeatable,
) -> None:
    class Further(xt.ExtendedEvaluation):
        def loss_function(self, params, apply_fn, batch, rng, train=False):  # type: ignore[override]
            return self.trainer.loss_function(params, apply_fn, batch, rng, train)

    def further(trainer: Any) -> Further:
        callback = Further(xt.ExtendedEvaluationConfig(), trainer)
        callback.set_dataset(VAL)
        return callback

    trainer = averaging.begin(further, xt.EMAConfig())
    metrics = trainer.train_model(probes.numbered(3), VAL, num_epochs=1)["val_epoch_1"]
    assert metrics["extended_loss"] == metrics["loss"]


SAVING = xt.ModelCheckpointConfig(monitor="val/loss", mode="max", max_to_keep=2)
"""The best is the first, which is not the last."""


def test_the_best_model_is_tested_and_loaded_with_its_own_average(
    averaging: probes.Repeatable, tmp_path: Path
) -> None:
    trainer = averaging.begin(xt.EMAConfig(), SAVING, folder=tmp_path)
    trainer.trainer_config.callbacks[:] = [xt.EMAConfig(), SAVING]  # as they are saved
    try:
        results = trainer.train_model(probes.numbered(4), VAL, test_loader=VAL, num_epochs=3)
    finally:
        trainer.trainer_config.callbacks.clear()
    losses = {name: found["loss"] for name, found in results.items() if name != "test"}
    best = max(losses, key=lambda name: losses[name])
    assert best != "val_epoch_3"
    assert results["test"] == results[best]
    loaded = probes.Traced.load_from_checkpoint(tmp_path, mesh=zoo.devices(1))
    assert [type(callback).__name__ for callback in loaded.callbacks] == ["EMA"]
    assert loaded.eval_model(VAL)["loss"] == pytest.approx(losses[best], rel=1e-6)


def test_a_run_that_goes_on_ends_with_the_same_average(
    averaging: probes.Repeatable, tmp_path: Path
) -> None:
    data = probes.numbered(5)
    whole = averaging.begin(xt.EMAConfig())
    whole.train_model(data, VAL, num_train_steps=9)
    expected, average = probes.learned(whole), average_of(whole)
    saving = xt.ModelCheckpointConfig(every_n_steps=4, max_to_keep=None)
    first = averaging.begin(xt.EMAConfig(), saving, folder=tmp_path)
    first.train_model(data, VAL, num_train_steps=4)
    second = averaging.begin(xt.EMAConfig(), saving, folder=tmp_path)
    results = second.train_model(data, VAL, num_train_steps=9, resume="must")
    assert second.progress.step == 9 and results
    jax.tree.map(np.testing.assert_array_equal, probes.learned(second)[0], expected[0])
    zoo.assert_same(average_of(second), average)


@pytest.mark.parametrize("way", ["dictionary", "run", "map"])
def test_another_model_is_not_evaluated_with_the_average_of_the_old_one(
    averaging: probes.Repeatable, tmp_path: Path, way: str
) -> None:
    other = averaging.begin(xt.ModelCheckpointConfig(), folder=tmp_path)
    other.train_model(probes.numbered(2), VAL, num_epochs=1)
    params = zoo.host(other.state.params)
    trainer = averaging.begin(xt.EMAConfig())
    trainer.train_model(probes.numbered(4), num_epochs=1)
    if way == "dictionary":
        trainer.restore_model({"params": params})
    elif way == "run":
        trainer.load_pretrained_model(tmp_path, load_optimizer=False)
    else:
        trainer.load_pretrained_model(tmp_path, param_map=xt.PretrainedMap())
    zoo.assert_same(trainer.evaluated_state().params, params)


def test_average_and_parameters_share_one_compiled_evaluation() -> None:
    trainer = zoo.make_trainer(optimizer=OPTIMIZER, mesh=zoo.devices(1), callbacks=[xt.EMAConfig()])
    with zoo.compilations() as found:
        trainer.eval_model(zoo.loader())  # nothing is in the average yet
        trainer.train_model(zoo.loader(), zoo.loader(), num_epochs=1)
    assert (found["train_step"], found["eval_step"]) == (1, 1)


@pytest.mark.parametrize("offload", [False, True])
def test_low_precision_parameters_in_parts_have_an_average(offload: bool) -> None:
    """bfloat16 on four devices that hold a part of each; the average may wait on the host."""
    parallel = xt.ParallelConfig(
        fsdp_axis_size=4, fsdp_min_weight_size=1, offload_optimizer_state=offload
    )
    trainer = zoo.make_trainer(
        optimizer=with_average(optax.sgd(0.1), DECAY),
        parallel=parallel,
        mesh=xt.build_mesh(parallel, jax.devices()[:4]),
        precision=xt.PrecisionConfig(param_dtype="bfloat16"),
        callbacks=[xt.EMAConfig()],
    )
    trainer.train_model(zoo.loader(), zoo.loader(), num_epochs=1)
    raw, evaluated = trainer.state.params, trainer.evaluated_state().params
    like = lambda tree: jax.tree.map(lambda x: (x.dtype, x.sharding), tree)  # noqa: E731
    assert like(evaluated) == like(raw)
    assert not evaluated["Dense_0"]["kernel"].is_fully_replicated
    average = trainer.state.opt_state.average
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(average)}
    assert ("pinned_host" in kinds) == offload
    zoo.assert_same(evaluated, jax.tree.map(lambda x: np.asarray(x).astype("bfloat16"), average))


def test_without_an_average_nothing_is_trained() -> None:
    trainer = zoo.make_trainer(callbacks=[xt.EMAConfig()], mesh=zoo.devices(1))
    with pytest.raises(ConfigError, match=r"EMAConfig: found an optimizer that keeps no average"):
        trainer.train_model(zoo.loader(), num_epochs=1)
    assert trainer.global_step == 0


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([xt.EMAConfig(main_process_only=True)], r"main_process_only: found True, expected False"),
        (
            [xt.EMAConfig(), xt.ModelCheckpointConfig(save_optimizer_state=False, log_path="x")],
            r"found EMAConfig beside ModelCheckpointConfig\(save_optimizer_state=False\)",
        ),
    ],
)
def test_a_mistake_is_named(callbacks: list[xt.CallbackConfig], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        zoo.make_trainer(callbacks=callbacks, optimizer=OPTIMIZER)
