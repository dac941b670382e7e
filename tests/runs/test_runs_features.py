"""Does each switch of a trainer do what it says, in a whole run?"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo

import xtrainer as xt
from xtrainer.errors import ConfigError, LossError, MetricError


def trained(epochs: int = 1, rows: int = 64, **more: Any) -> Any:
    """Returns a trainer after some passes over the data, on one device."""
    more = {"mesh": zoo.devices(1), **more}
    trainer = zoo.make_trainer(**more)
    trainer.train_model(zoo.loader(rows, shuffle=True), num_epochs=epochs)
    return trainer


# Seeds.


def test_two_runs_of_one_seed_are_equal_bit_for_bit() -> None:
    first, again = (trained(model={"dropout": 0.5}, seed=3, rows=32) for _ in range(2))
    zoo.assert_same(first.state, again.state)


class WithNoise(zoo.Classifier):
    """Logs what the key draws."""

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        loss, _ = super().loss_function(params, apply_fn, batch, rng, train)
        draw = {"value": jax.random.uniform(rng), "log_modes": ["single", "max"]}
        return loss, ({"draw": draw}, {})


def test_every_step_and_every_micro_batch_has_a_key_of_its_own(tmp_path: Path) -> None:
    for pieces in (1, 2):
        folder = tmp_path / str(pieces)
        trained(
            trainer_class=WithNoise,
            logger=zoo.file_logger(folder),
            gradient_accumulate_steps=pieces,
        )
    one, two = (zoo.rows_of(tmp_path / name, "train") for name in ("1", "2"))
    draws = [row["draw_single"] for row in one.values()]
    assert len(set(draws)) == 4
    # Two micro-batches: the mean of the first key's draw and of another one's.
    others = [2 * row["draw_single"] - draw for row, draw in zip(two.values(), draws, strict=True)]
    assert all(0 < value < 1 for value in others)
    assert not np.isclose(others, draws, atol=1e-3).any()


# Log modes.


class WithModes(zoo.Classifier):
    """Logs the number of its step in every mode."""

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        loss, _ = super().loss_function(params, apply_fn, batch, rng, train)
        value = batch.inputs[:, 0].mean()
        modes = ["mean", "mean_nopostfix", "single", "max", "min", "sum", "std"]
        return loss, ({"x": {"value": value, "log_modes": modes}, "plain": value}, {})


def test_every_log_mode_is_right_over_the_steps_of_a_row(tmp_path: Path) -> None:
    logger = zoo.file_logger(tmp_path, every=4)
    trainer = zoo.make_trainer(
        WithModes, mesh=zoo.devices(1), logger=logger, default_train_log_modes=["max", "single"]
    )
    trainer.train_model(zoo.loader(64), num_epochs=1)
    means = [batch.inputs[:, 0].astype(np.float64).mean() for batch in zoo.loader(64)]
    row = zoo.rows_of(tmp_path, "train")[4]
    expected = {
        "x_mean": np.mean(means),
        "x": np.mean(means),
        "x_single": means[-1],
        "x_max": max(means),
        "x_min": min(means),
        "x_sum": 16 * sum(means),
        "x_std": np.std(means),
        "plain_max": max(means),
        "plain_single": means[-1],
    }
    found = {key: value for key, value in row.items() if key.startswith(("x", "plain"))}
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert "loss_max" in row and "loss_mean" not in row


class WithWrongMode(zoo.Classifier):
    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        loss, _ = super().loss_function(params, apply_fn, batch, rng, train)
        return loss, ({"x": {"value": loss, "log_modes": ["maks"]}}, {})


def test_an_unknown_log_mode_is_an_error_when_the_trainer_is_built() -> None:
    with pytest.raises(LossError, match="'x' asks for the log mode 'maks'. Did you mean 'max'"):
        zoo.make_trainer(WithWrongMode, mesh=zoo.devices(1))


class Constant(zoo.Classifier):
    """Metrics that are 1.0, or below zero, whatever the devices."""

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        loss, _ = super().loss_function(params, apply_fn, batch, rng, train)
        low = {"value": -2.0 - jnp.abs(batch.inputs[:, 0]), "log_modes": ["max"]}
        return loss, ({"one": 1.0, "ones": jnp.ones_like(loss), "low": low}, {})


def test_ones_are_logged_as_one_and_a_maximum_can_be_negative(tmp_path: Path) -> None:
    trainer = zoo.make_trainer(
        Constant, logger=zoo.file_logger(tmp_path, 2), gradient_accumulate_steps=2
    )
    results = trainer.train_model(zoo.loader(43), zoo.loader(21), num_epochs=1)
    rows = zoo.rows_of(tmp_path, "train").values()
    assert [(row["one_mean"], row["ones_mean"]) for row in rows] == [(1.0, 1.0)] * 2
    assert all(-4.0 < row["low_max"] < -2.0 for row in rows)
    assert (results["val_epoch_1"]["one"], results["val_epoch_1"]["ones"]) == (1.0, 1.0)


# Precision.


def test_bfloat16_trains_to_about_the_loss_of_float32() -> None:
    losses = {}
    for dtype in ("float32", "bfloat16"):
        precision = xt.PrecisionConfig(compute_dtype=dtype)
        trainer = trained(
            6,
            precision=precision,
            model={"batch_norm": True},
            optimizer=zoo.optimizer("adam", 0.03),
        )
        leaves = jax.tree.leaves((trainer.state.params, trainer.state.mutable_variables))
        assert {leaf.dtype.name for leaf in leaves} == {"float32"}
        losses[dtype] = trainer.eval_model(zoo.loader(64))["loss"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.1)
    assert losses["bfloat16"] != losses["float32"]


def test_the_model_computes_in_the_dtype_that_is_asked_for() -> None:
    seen = []

    class Looking(zoo.Classifier):
        def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
            logits = apply_fn({"params": params}, batch.inputs, train=train)
            seen.append((jax.tree.leaves(params)[0].dtype.name, logits.dtype.name))
            return logits.sum(-1), ({}, {})

    zoo.make_trainer(
        Looking, mesh=zoo.devices(1), precision=xt.PrecisionConfig(compute_dtype="bfloat16")
    )
    assert set(seen) == {("bfloat16", "float32")}


# Optimizers.


@pytest.mark.parametrize("name", ["adamw", "optax.lion"])
def test_weight_decay_shrinks_the_weights_of_a_run(name: str) -> None:
    class NoGradient(zoo.Classifier):
        def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
            loss, rest = super().loss_function(params, apply_fn, batch, rng, train)
            return jax.lax.stop_gradient(loss), rest

    optimizer = zoo.optimizer(name, lr=0.1, weight_decay=0.5, weight_decay_exclude=("bias$",))
    trainer = zoo.make_trainer(NoGradient, optimizer=optimizer, mesh=zoo.devices(1))
    before = zoo.host(trainer.state.params)
    trainer.train_model(zoo.loader(16), num_train_steps=2)
    expected = jax.tree_util.tree_map_with_path(
        lambda path, x: x * (0.95**2 if "kernel" in str(path) else 1.0), before
    )
    zoo.assert_close(trainer.state.params, expected)


# Metrics to monitor.


def test_an_unknown_metric_to_monitor_is_an_error_with_the_nearest_name(tmp_path: Path) -> None:
    callbacks = [xt.ModelCheckpointConfig(monitor="acuracy", log_path=str(tmp_path))]
    trainer = zoo.make_trainer(mesh=zoo.devices(1), callbacks=callbacks)
    with pytest.raises(MetricError, match="'acuracy', which is not .* Did you mean 'accuracy'"):
        trainer.train_model(zoo.loader(16), zoo.loader(16), num_epochs=1)
    assert (tmp_path / "1").is_dir()  # what was trained is not lost


def test_a_checkpoint_without_a_folder_is_an_error_when_the_trainer_is_built() -> None:
    with pytest.raises(ConfigError, match=r"found no folder.* Set\s+LoggerConfig\(log_path"):
        zoo.make_trainer(mesh=zoo.devices(1), callbacks=[xt.ModelCheckpointConfig(monitor="loss")])


# BatchNorm and dropout.


def test_a_model_with_batch_norm_and_dropout_learns() -> None:
    trainer = zoo.make_trainer(
        model={"batch_norm": True, "dropout": 0.1},
        optimizer=zoo.optimizer("adam", lr=0.03),
        gradient_accumulate_steps=2,
    )
    before = zoo.host(trainer.state.mutable_variables)
    results = trainer.train_model(zoo.loader(64, shuffle=True), zoo.loader(64), num_epochs=10)
    assert results["val_epoch_10"]["accuracy"] > 0.85
    after = zoo.host(trainer.state.mutable_variables)
    assert not np.allclose(
        before["batch_stats"]["BatchNorm_0"]["mean"], after["batch_stats"]["BatchNorm_0"]["mean"]
    )


class ReturningUpdates(zoo.Classifier):
    """Asks for the updates of batch statistics itself, as in plain Flax."""

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        mutable = ["batch_stats"] if train else False
        out = apply_fn({"params": params}, batch.inputs, train=train, mutable=mutable)
        logits, updates = out if train else (out, {})
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        return loss, ({}, updates)


def test_updates_may_be_returned_or_gathered() -> None:
    ends = [
        trained(trainer_class=trainer_class, model={"batch_norm": True}, rows=32)
        for trainer_class in (zoo.Classifier, ReturningUpdates)
    ]
    zoo.assert_close(ends[1].state.params, ends[0].state.params)
    zoo.assert_close(ends[1].state.mutable_variables, ends[0].state.mutable_variables)
