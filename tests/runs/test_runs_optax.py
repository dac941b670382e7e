"""Are ten steps of every optimizer, clipping, schedule and penalty those of an Optax loop by hand?

A case is a config and what a user would write for it with Optax alone; see ``Case``. To add one,
put it into a table.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from jax.flatten_util import ravel_pytree

import xtrainer as xt
from xtrainer.optim import frozen_patterns, regularization_of
from xtrainer.optim.optimizers import OPTIMIZERS
from xtrainer.state import TrainState
from xtrainer.step import make_train_step

STEPS, ROWS, LR, NEAR = 10, 16, 0.05, 1e-6
MODEL = zoo.MLP(width=4)


def config(name: str = "sgd", lr: float = LR, **fields: Any) -> xt.OptimizerConfig:
    """Returns an optimizer's config, by default gradient descent with a constant rate."""
    return xt.OptimizerConfig(**{"name": name, "scheduler": xt.SchedulerConfig(lr=lr), **fields})


@dataclasses.dataclass(frozen=True)
class Case:
    """A config, and the same by hand.

    Attributes:
        config: What xtrainer is given.
        by_hand: Makes the transformation, of Optax's own parts.
        penalty: What is added to the loss by hand.
        freeze: Whether a parameter, given by its path, is frozen by hand.
    """

    config: xt.OptimizerConfig
    by_hand: Callable[[], optax.GradientTransformation]
    penalty: Callable[[Any], Any] | None = None
    freeze: Callable[[str], bool] | None = None


def kernels(params: Any) -> Any:
    """Returns which parameters are kernels, as a tree of bools."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "kernel" in str(path[-1]), params)


def total(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns the sum of a function of each parameter."""
    return lambda params: sum(jnp.sum(function(leaf)) for leaf in jax.tree.leaves(params))


OF_OPTIMIZERS = {
    "adam": Case(
        config("adam", beta1=0.8, beta2=0.95, eps=1e-6), lambda: optax.adam(LR, 0.8, 0.95, 1e-6)
    ),
    "adam-decay": Case(
        config("adam", weight_decay=0.2),
        lambda: optax.chain(
            optax.scale_by_adam(), optax.add_decayed_weights(0.2), optax.scale(-LR)
        ),
    ),
    "adamw": Case(config("adamw", weight_decay=0.2), lambda: optax.adamw(LR, weight_decay=0.2)),
    "nadam": Case(config("nadam"), lambda: optax.nadam(LR)),
    "nadamw": Case(config("nadamw", weight_decay=0.2), lambda: optax.nadamw(LR, weight_decay=0.2)),
    "adamax": Case(config("adamax"), lambda: optax.adamax(LR)),
    "adamaxw": Case(
        config("adamaxw", weight_decay=0.2), lambda: optax.adamaxw(LR, weight_decay=0.2)
    ),
    "radam": Case(config("radam", beta2=0.9), lambda: optax.radam(LR, b2=0.9)),
    "lamb": Case(config("lamb", eps=1e-6), lambda: optax.lamb(LR)),
    "lion": Case(config("lion", beta2=0.99), lambda: optax.lion(LR, weight_decay=0.0)),
    "sgd": Case(config("sgd"), lambda: optax.sgd(LR)),
    "sgd-nesterov": Case(
        config("sgd", momentum=0.9, nesterov=True), lambda: optax.sgd(LR, 0.9, nesterov=True)
    ),
    "rmsprop": Case(
        config("rmsprop", beta2=0.9, momentum=0.5),
        lambda: optax.rmsprop(LR, 0.9, momentum=0.5, bias_correction=True),
    ),
    "adagrad": Case(config("adagrad", eps=1e-7), lambda: optax.adagrad(LR)),
    "lbfgs": Case(xt.OptimizerConfig(name="lbfgs", memory_size=3), lambda: optax.lbfgs(None, 3)),
    "optax.adabelief": Case(
        config("optax.adabelief", kwargs={"b1": 0.8}), lambda: optax.adabelief(LR, b1=0.8)
    ),
}

OF_CLIPPINGS = {
    "norm": Case(
        config(grad_clip_norm=0.3),
        lambda: optax.chain(optax.clip_by_global_norm(0.3), optax.sgd(LR)),
    ),
    "value": Case(
        config(grad_clip_value=0.05), lambda: optax.chain(optax.clip(0.05), optax.sgd(LR))
    ),
    "norm-value": Case(
        config("adamw", grad_clip_norm=0.3, grad_clip_value=0.05, weight_decay=0.2),
        lambda: optax.chain(
            optax.clip_by_global_norm(0.3), optax.clip(0.05), optax.adamw(LR, weight_decay=0.2)
        ),
    ),
}


def scheduled(schedule: Callable[..., Any], **fields: Any) -> Case:
    """Returns the case of a schedule, followed by gradient descent."""
    scheduler = xt.SchedulerConfig(**{"lr": LR, "decay_steps": STEPS, **fields})
    return Case(config(scheduler=scheduler), lambda: optax.sgd(schedule))


LINE = optax.linear_schedule
OF_SCHEDULES = {
    "cosine_decay": scheduled(
        optax.cosine_decay_schedule(LR, STEPS, 0.1), name="cosine_decay", end_lr_factor=0.1
    ),
    "exponential_decay": scheduled(
        optax.exponential_decay(LR, STEPS, 0.1), name="exponential_decay", end_lr_factor=0.1
    ),
    "linear": scheduled(LINE(LR, 0.01, STEPS), name="linear", end_lr=0.01),
    "warmup": scheduled(
        optax.warmup_cosine_decay_schedule(0.0, LR, 3, STEPS), name="cosine_decay", warmup_steps=3
    ),
    "cooldown": scheduled(
        optax.join_schedules([LINE(0.0, LR, 2), LINE(LR, 0.02, 5), LINE(0.02, 0.01, 3)], [2, 7]),
        name="linear", end_lr=0.02, warmup_steps=2, cooldown_steps=3, cooldown_lr=0.01,
    ),
    "optax.polynomial_schedule": Case(
        config(
            "adamw",
            scheduler=xt.SchedulerConfig(
                name="optax.polynomial_schedule",
                kwargs={"init_value": LR, "end_value": 0.0, "power": 2, "transition_steps": STEPS},
            ),
        ),
        lambda: optax.adamw(optax.polynomial_schedule(LR, 0.0, 2, STEPS), weight_decay=0.0),
    ),
}  # fmt: skip

OF_PENALTIES = {
    "l1": Case(
        config(regularization=xt.RegularizationConfig(type="l1", strength=0.02)),
        lambda: optax.sgd(LR),
        total(lambda p: 0.02 * jnp.abs(p)),
    ),
    "l2": Case(
        config("adam", regularization=xt.RegularizationConfig(strength=0.1)),
        lambda: optax.adam(LR),
        total(lambda p: 0.1 * p**2),
    ),
    "l1_l2": Case(
        config(
            grad_clip_norm=0.3,
            regularization=xt.RegularizationConfig(type="l1_l2", l1_strength=0.02, l2_strength=0.1),
        ),
        lambda: optax.chain(optax.clip_by_global_norm(0.3), optax.sgd(LR)),
        total(lambda p: 0.02 * jnp.abs(p) + 0.1 * p**2),
    ),
}

FIRST = "Dense_0"
OF_FREEZING = {
    "sgd": Case(
        config(freeze=(FIRST,), grad_clip_norm=0.2),
        lambda: optax.chain(optax.clip_by_global_norm(0.2), optax.sgd(LR)),
        freeze=lambda path: FIRST in path,
    ),
    "adamw": Case(
        config("adamw", freeze=("*/bias",), weight_decay=0.2),
        lambda: optax.adamw(LR, weight_decay=0.2),
        freeze=lambda path: "bias" in path,
    ),
}

ALL_AT_ONCE = Case(
    config(
        "adamw",
        scheduler=xt.SchedulerConfig(
            name="cosine_decay", lr=LR, warmup_steps=2, decay_steps=STEPS, end_lr=0.01
        ),
        weight_decay=0.2,
        weight_decay_exclude=("*/bias",),
        grad_clip_norm=0.3,
        grad_clip_value=0.05,
        regularization=xt.RegularizationConfig(type="l1_l2", strength=0.01),
        freeze=("Dense_0/bias",),
    ),
    lambda: optax.chain(
        optax.clip_by_global_norm(0.3),
        optax.clip(0.05),
        optax.adamw(
            optax.warmup_cosine_decay_schedule(0.0, LR, 2, STEPS, 0.01),
            weight_decay=0.2,
            mask=lambda params: kernels(params),
        ),
    ),
    lambda params: sum(
        0.01 * jnp.sum(jnp.abs(p) + p**2)
        for p in (params["Dense_0"]["kernel"], *params["Dense_1"].values())
    ),
    lambda path: "Dense_0" in path and "bias" in path,
)

TABLES = {
    "optimizer": OF_OPTIMIZERS,
    "clipping": OF_CLIPPINGS,
    "schedule": OF_SCHEDULES,
    "penalty": OF_PENALTIES,
    "freezing": OF_FREEZING,
    "all": {"at once": ALL_AT_ONCE},
}
CASES = {f"{table}-{name}": case for table, cases in TABLES.items() for name, case in cases.items()}


@functools.cache
def start() -> Any:
    """Returns parameters to begin with, none of them 0."""
    params = MODEL.init(jax.random.key(0), jnp.ones((1, 4)))["params"]
    return jax.tree.map(lambda p: np.asarray(p + 0.1), params)


@functools.cache
def batches() -> tuple[xt.Batch, ...]:
    """Returns the batches of the steps."""
    return tuple(zoo.classification_data(ROWS, seed) for seed in range(STEPS))


def mean_loss(params: Any, batch: xt.Batch) -> Any:
    logits = MODEL.apply({"params": params}, batch.inputs, train=True)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets).mean()  # type: ignore[arg-type]


@functools.cache
def steps_by_hand(name: str) -> Any:
    """Returns the parameters after the steps of a loop with Optax alone."""
    case = CASES[name]
    optimizer = optax.with_extra_args_support(case.by_hand())
    params = start()
    paths = jax.tree_util.tree_leaves_with_path(params)
    trained = [not (case.freeze and case.freeze(str(path))) for path, _ in paths]
    structure = jax.tree.structure(params)

    def whole(leaves: Any) -> Any:
        given = iter(leaves.values())
        found = [
            next(given) if moves else leaf for moves, (_, leaf) in zip(trained, paths, strict=True)
        ]
        return jax.tree.unflatten(structure, found)

    @jax.jit
    def step(leaves: Any, state: Any, batch: Any) -> Any:
        def value_fn(leaves: Any) -> Any:
            params = whole(leaves)
            return mean_loss(params, batch) + (case.penalty(params) if case.penalty else 0.0)

        value, grad = jax.value_and_grad(value_fn)(leaves)
        extra = {"value": value, "grad": grad, "value_fn": value_fn}
        updates, state = optimizer.update(grad, state, leaves, **extra)
        return optax.apply_updates(leaves, updates), state

    # A mapping by path: what is frozen is simply not there.
    leaves = {str(path): leaf for moves, (path, leaf) in zip(trained, paths, strict=True) if moves}
    state = optimizer.init(leaves)
    for batch in batches():
        leaves, state = step(leaves, state, batch)
    return zoo.host(whole(leaves))


def assert_near(found: Any, expected: Any) -> None:
    """Fails unless the parameters differ by no more than a millionth of the largest one."""
    first, second = ravel_pytree(zoo.host(found))[0], ravel_pytree(expected)[0]
    np.testing.assert_allclose(first, second, rtol=0, atol=NEAR * float(np.abs(second).max()))
    assert float(np.abs(second - ravel_pytree(start())[0]).max()) > 1e-3


def test_every_name_of_the_table_has_a_case() -> None:
    names = {case.config.name for case in OF_OPTIMIZERS.values()}
    assert names >= {*OPTIMIZERS, "lbfgs"}


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_are_those_of_an_optax_loop(name: str) -> None:
    chosen = CASES[name].config
    optimizer = xt.build_optimizer(chosen).transform
    settings = xt.StepSettings(
        freeze=frozen_patterns(chosen),
        regularization=regularization_of(chosen),
        log_grad_norm=False,
        log_param_norm=False,
    )
    step = jax.jit(make_train_step(loss_function, MODEL.apply, optimizer, settings))
    state = TrainState.create(start(), optimizer, jax.random.key(0))
    for batch in batches():
        state, _, _ = step(state, batch)
    assert_near(state.params, steps_by_hand(name))


def loss_function(params: Any, apply_fn: Any, batch: Any, rng: Any, train: bool = True) -> Any:
    logits = apply_fn({"params": params}, batch.inputs, train=train)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets), ({}, {})


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("optimizer-sgd-nesterov", 1),
        ("penalty-l1_l2", 2),
        ("schedule-cooldown", 1),
        ("all-at once", 2),
    ],
)
def test_ten_steps_of_a_trainer_on_eight_devices_are_those_of_the_loop(name, count) -> None:
    trainer = zoo.make_trainer(
        model={"width": 4}, optimizer=CASES[name].config, gradient_accumulate_steps=count
    )
    state = trainer.state
    place = lambda new, old: jax.device_put(new, old.sharding)  # noqa: E731
    trainer.state = state.replace(params=jax.tree.map(place, start(), state.params))
    trainer.train_model(batches(), None, num_train_steps=STEPS)
    assert_near(trainer.state.params, steps_by_hand(name))
