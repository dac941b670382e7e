"""The learning rate by workers and micro-batches: the factor, the schedule, a trainer."""

import jax.numpy as jnp
import numpy as np
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.config import Config
from xtrainer.errors import ConfigError
from xtrainer.optim import OptimizerConfig, SchedulerConfig, build_optimizer
from xtrainer.optim.rate import rate_factor, scaled_schedule

COUNTS = {"workers": 8, "micro_batches": 2}
CURVE = SchedulerConfig(
    name="linear", lr=0.5, end_lr=0.1, warmup_steps=2, decay_steps=12, cooldown_steps=3,
    cooldown_lr=0.01,
)  # fmt: skip


@pytest.mark.parametrize(
    ("sources", "linear", "root"),
    [
        ((), 1.0, 1.0),
        (("workers",), 8.0, 8.0**0.5),
        (("accumulation",), 2.0, 2.0**0.5),
        (("workers", "accumulation"), 16.0, 4.0),
        (("accumulation", "workers"), 16.0, 4.0),
    ],
)
def test_the_factor_follows_what_is_named(sources, linear: float, root: float) -> None:
    assert rate_factor(sources, "linear", **COUNTS) == linear
    assert rate_factor(sources, "sqrt", **COUNTS) == root
    assert rate_factor(sources, "constant", **COUNTS) == 1.0


def test_warmup_end_and_cooldown_follow_the_factor() -> None:
    config = OptimizerConfig(scheduler=CURVE, scale_lr_with=("workers",))
    plain, scaled = build_optimizer(config).schedule, build_optimizer(config, **COUNTS).schedule
    assert plain is not None and scaled is not None
    steps = jnp.arange(14)
    np.testing.assert_allclose(scaled(steps), 8.0 * plain(steps), rtol=1e-6)
    assert float(scaled(12)) == pytest.approx(0.08)


def test_without_a_factor_the_schedule_is_the_same_function() -> None:
    schedule = lambda step: step  # noqa: E731
    assert scaled_schedule(schedule, 1.0) is schedule


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion", "optax.sgd", "optax.lion"])
def test_updates_and_decay_are_those_of_the_scaled_rate(name: str) -> None:
    params = {"w": jnp.array([1.0, -2.0])}
    gradient = {"w": jnp.array([0.3, 0.1])}
    scaled = OptimizerConfig(
        name=name, scheduler=SchedulerConfig(lr=0.01), weight_decay=0.1, scale_lr_with=("workers",)
    )
    written = OptimizerConfig(name=name, scheduler=SchedulerConfig(lr=0.08), weight_decay=0.1)
    found, expected = (
        transform.update(gradient, transform.init(params), params)[0]["w"]
        for transform in (build_optimizer(scaled, **COUNTS).transform,
                          build_optimizer(written).transform)
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_ready_transformation_is_not_scaled() -> None:
    ready = build_optimizer(OptimizerConfig()).transform
    assert build_optimizer(ready, **COUNTS).transform is ready


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale_lr_with": ("worker",)}, r"scale_lr_with\[0\]: found 'worker'\. Did you mean"),
        ({"scale_lr_with": ("workers", "workers")}, r"scale_lr_with: found 'workers' twice"),
        ({"scale_lr_rule": "square"}, r"scale_lr_rule: found 'square'"),
    ],
)
def test_a_mistake_is_named(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_optimizer(OptimizerConfig(**fields))


def test_the_fields_come_back_from_json() -> None:
    config = OptimizerConfig(scale_lr_with=("workers", "accumulation"), scale_lr_rule="sqrt")
    assert Config.from_dict(OptimizerConfig, config.to_dict()) == config


def test_a_trainer_counts_its_devices_and_micro_batches() -> None:
    """4 devices and 2 micro-batches: what is logged, and how far a step of SGD goes."""
    config = OptimizerConfig(
        name="sgd",
        scheduler=SchedulerConfig(lr=0.01),
        scale_lr_with=("workers", "accumulation"),
    )
    common = {"mesh": zoo.devices(4), "gradient_accumulate_steps": 2}
    scaled = zoo.make_trainer(
        optimizer=config, callbacks=[xt.LearningRateMonitorConfig()], **common
    )
    written = zoo.make_trainer(optimizer=zoo.optimizer("sgd", 0.08), **common)
    for trainer in (scaled, written):
        trainer.logger = probes.Memory()
        trainer.train_model(zoo.loader(32), num_epochs=1)
    zoo.assert_close(scaled.state.params, written.state.params)
    assert scaled.logger.column("learning_rate") == pytest.approx([0.08])


@pytest.mark.parametrize(
    ("parallel", "workers"),
    [
        ({}, 8),
        ({"fsdp_axis_size": 4}, 8),
        ({"model_axis_size": 2}, 4),
    ],
)
def test_workers_are_the_devices_that_share_a_batch(parallel: dict, workers: int) -> None:
    config = OptimizerConfig(
        name="sgd", scheduler=SchedulerConfig(lr=0.5), scale_lr_with=("workers",)
    )
    with xt.trainer.shapes_only():
        trainer = zoo.make_trainer(optimizer=config, parallel=xt.ParallelConfig(**parallel))
    assert trainer.learning_rate(1) == 0.5 * workers
