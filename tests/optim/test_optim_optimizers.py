"""The table of names: every entry against the Optax function it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xtrainer.optim import OptimizerConfig, SchedulerConfig, build_optimizer
from xtrainer.optim.optimizers import OPTIMIZERS, Numbers, momentum_problems, name_problems

SCHEDULER = SchedulerConfig(name="cosine_decay", lr=1e-2, decay_steps=20, warmup_steps=2)
PARAMS = {
    "dense": {"kernel": jnp.linspace(-1.0, 2.0, 12).reshape(3, 4), "bias": jnp.ones(4)},
    "scale": jnp.array(0.5),
}


def rate(step):
    warmup = optax.linear_schedule(0.0, 1e-2, 2)
    return optax.join_schedules([warmup, optax.cosine_decay_schedule(1e-2, 18)], [2])(step)


def gradients(number: int):
    random = np.random.default_rng(number)
    return jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), PARAMS)


def run(transform: optax.GradientTransformation):
    """Parameters after some steps on gradients that change."""

    @jax.jit
    def step(params, state, gradient):
        updates, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, transform.init(PARAMS)
    for number in range(6):
        params, state = step(params, state, gradients(number))
    return params


BETAS = {"b1": 0.8, "b2": 0.95, "eps": 1e-6}
DECAY = {"weight_decay": 0.1}
EXPECTED = {
    "adam": ({}, lambda: optax.adam(rate, **BETAS)),
    "adamw": (DECAY, lambda: optax.adamw(rate, **BETAS, **DECAY)),
    "nadam": ({}, lambda: optax.nadam(rate, **BETAS)),
    "nadamw": (DECAY, lambda: optax.nadamw(rate, **BETAS, **DECAY)),
    "adamax": ({}, lambda: optax.adamax(rate, **BETAS)),
    "adamaxw": (DECAY, lambda: optax.adamaxw(rate, **BETAS, **DECAY)),
    "radam": ({}, lambda: optax.radam(rate, **BETAS)),
    "lamb": ({}, lambda: optax.lamb(rate, **BETAS)),
    "lion": (DECAY, lambda: optax.lion(rate, b1=0.8, b2=0.95, **DECAY)),
    "adagrad": ({}, lambda: optax.adagrad(rate, eps=1e-6)),
    "rmsprop": ({}, lambda: optax.rmsprop(rate, decay=0.95, eps=1e-6, bias_correction=True)),
    "sgd": ({}, lambda: optax.sgd(rate)),
}


def test_the_list_of_expectations_is_whole() -> None:
    assert EXPECTED.keys() == OPTIMIZERS.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_updates_equal_those_of_optax(name: str) -> None:
    fields, expected = EXPECTED[name]
    config = OptimizerConfig(
        name=name, scheduler=SCHEDULER, beta1=0.8, beta2=0.95, eps=1e-6, **fields
    )
    found, wanted = run(build_optimizer(config).transform), run(expected())
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), found, wanted)
    assert not np.allclose(found["dense"]["kernel"], PARAMS["dense"]["kernel"], atol=1e-3)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("name", ["sgd", "rmsprop"])
def test_momentum_accumulates_updates(name: str, nesterov: bool) -> None:
    scheduler = SchedulerConfig(lr=1e-2)  # Optax scales before its momentum in rmsprop
    config = OptimizerConfig(name=name, scheduler=scheduler, momentum=0.9, nesterov=nesterov)
    extra = {"decay": 0.999, "bias_correction": True} if name == "rmsprop" else {}
    expected = getattr(optax, name)(1e-2, momentum=0.9, nesterov=nesterov, **extra)
    found, wanted = run(build_optimizer(config).transform), run(expected)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, wanted)


@pytest.mark.parametrize("name", ["adam", "adamw", "radam"])
def test_nesterov_is_read(name: str) -> None:
    config = OptimizerConfig(name=name, scheduler=SCHEDULER, nesterov=True)
    factory = {"adam": optax.adam, "adamw": optax.adam, "radam": optax.radam}[name]
    found, wanted = run(build_optimizer(config).transform), run(factory(rate, nesterov=True))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), found, wanted)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("adagrd", "adagrad"), ("rms_prop", "rmsprop"), ("optax.lyon", "optax.lion")],
)
def test_an_unknown_name_gives_the_nearest(name: str, nearest: str) -> None:
    (problem,) = name_problems(name)
    assert f"name: found {name!r}. Did you mean {nearest!r}?" in problem


@pytest.mark.parametrize("name", ["optax.scale_by_learning_rate", "optax.apply_updates", "optax."])
def test_what_is_no_optimizer_is_unknown(name: str) -> None:
    assert name_problems(name)


@pytest.mark.parametrize(
    ("name", "momentum", "nesterov", "message"),
    [
        ("adam", 0.9, False, "momentum: found 0.9, which adam does not read"),
        ("optax.sgd", 0.9, False, "momentum: found 0.9, which optax.sgd does not read"),
        ("lion", None, True, "nesterov: found True, which lion does not read"),
        ("sgd", None, True, "nesterov: found True; sgd needs a momentum"),
    ],
)
def test_momentum_that_is_not_read_is_a_problem(name, momentum, nesterov, message) -> None:
    (problem,) = momentum_problems(name, Numbers(0.9, 0.999, 1e-8, momentum, nesterov))
    assert problem.startswith(message)
