"""Names of Optax: which can be named, and what is wrong with a call."""

import optax
import pytest

from xtrainer.optim.optax_names import call_problems, optimizer_factories, schedule_factories


@pytest.mark.parametrize("name", ["lion", "adamw", "nadamw", "lars", "adafactor", "contrib.muon"])
def test_optimizers_can_be_named(name: str) -> None:
    target = optax.contrib.muon if name == "contrib.muon" else getattr(optax, name)
    assert optimizer_factories()[f"optax.{name}"] is target


@pytest.mark.parametrize("name", ["cosine_decay_schedule", "exponential_decay", "sgdr_schedule"])
def test_schedules_can_be_named(name: str) -> None:
    assert schedule_factories()[f"optax.{name}"] is getattr(optax, name)


def test_nothing_private_and_no_module_can_be_named() -> None:
    names = [*optimizer_factories(), *schedule_factories()]
    assert not [name for name in names if "._" in name or "jax" in name]
    assert all(
        name.removeprefix("optax.").removeprefix("contrib.").isidentifier() for name in names
    )


def test_a_right_call_has_no_problems() -> None:
    assert call_problems("optax.lion", optax.lion, {"b1": 0.95}, "learning_rate") == []


@pytest.mark.parametrize(
    ("kwargs", "problem"),
    [
        ({"bb1": 0.9}, "kwargs.bb1: optax.lion has no such argument. Did you mean 'b1'?"),
        ({"learning_rate": 0.1}, "kwargs.learning_rate: optax.lion gets it from the config."),
    ],
)
def test_a_wrong_argument_is_named(kwargs: dict, problem: str) -> None:
    (found,) = call_problems("optax.lion", optax.lion, kwargs, "learning_rate")
    assert found.startswith(problem)


def test_a_missing_argument_is_named() -> None:
    (found,) = call_problems(
        "optax.contrib.dpsgd", optax.contrib.dpsgd, {"seed": 1}, "learning_rate"
    )
    assert found == "kwargs: optax.contrib.dpsgd needs a value for l2_norm_clip, noise_multiplier."
