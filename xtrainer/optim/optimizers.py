"""What does an optimizer's name stand for? The direction of the update, before the learning rate.

Every entry is made of Optax's own parts and gives the same updates as the Optax function of its
name without weight decay; ``rmsprop`` corrects the bias of its average, as the Adam family does.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import optax

from xtrainer.errors import did_you_mean
from xtrainer.optim.lbfgs import LBFGS
from xtrainer.optim.optax_names import PREFIX, is_factory, optimizer_factories, taken_problems
from xtrainer.registry import optimizers, tell_names


class Numbers(NamedTuple):
    """The numbers that optimizers read; which ones, the table tells."""

    beta1: float
    beta2: float
    eps: float
    momentum: float | None
    nesterov: bool


class Optimizer(NamedTuple):
    """One row of the table.

    Attributes:
        direction: Makes the transformation from gradients to unscaled updates.
        takes_momentum: Whether ``momentum`` is read.
        takes_nesterov: Whether ``nesterov`` is read.
    """

    direction: Callable[[Numbers], optax.GradientTransformation]
    takes_momentum: bool = False
    takes_nesterov: bool = False


def _adam(n: Numbers) -> optax.GradientTransformation:
    return optax.scale_by_adam(n.beta1, n.beta2, n.eps, nesterov=n.nesterov)


def _nadam(n: Numbers) -> optax.GradientTransformation:
    return optax.scale_by_adam(n.beta1, n.beta2, n.eps, nesterov=True)


def _adamax(n: Numbers) -> optax.GradientTransformation:
    return optax.scale_by_adamax(n.beta1, n.beta2, n.eps)


def _radam(n: Numbers) -> optax.GradientTransformation:
    return optax.scale_by_radam(n.beta1, n.beta2, n.eps, nesterov=n.nesterov)


def _lamb(n: Numbers) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_adam(n.beta1, n.beta2, n.eps), optax.scale_by_trust_ratio())


def _lion(n: Numbers) -> optax.GradientTransformation:
    return optax.scale_by_lion(n.beta1, n.beta2)


def _adagrad(n: Numbers) -> optax.GradientTransformation:
    return optax.scale_by_rss(eps=n.eps)


def _momentum(n: Numbers) -> optax.GradientTransformation:
    if n.momentum is None:
        return optax.identity()
    return optax.trace(n.momentum, nesterov=n.nesterov)


def _rmsprop(n: Numbers) -> optax.GradientTransformation:
    # Without the correction the first updates are 1 / sqrt(1 - beta2) times too long.
    scale = optax.scale_by_rms(n.beta2, n.eps, bias_correction=True)
    return optax.chain(scale, _momentum(n))


OPTIMIZERS: Mapping[str, Optimizer] = MappingProxyType(
    {
        "adam": Optimizer(_adam, takes_nesterov=True),
        "adamw": Optimizer(_adam, takes_nesterov=True),
        "nadam": Optimizer(_nadam, takes_nesterov=True),
        "nadamw": Optimizer(_nadam, takes_nesterov=True),
        "adamax": Optimizer(_adamax),
        "adamaxw": Optimizer(_adamax),
        "radam": Optimizer(_radam, takes_nesterov=True),
        "lamb": Optimizer(_lamb),
        "lion": Optimizer(_lion),
        "adagrad": Optimizer(_adagrad),
        "sgd": Optimizer(_momentum, takes_momentum=True, takes_nesterov=True),
        "rmsprop": Optimizer(_rmsprop, takes_momentum=True, takes_nesterov=True),
    }
)


tell_names("optimizer", lambda: [*OPTIMIZERS, LBFGS, *optimizer_factories()])


def name_problems(name: str) -> list[str]:
    """Returns a sentence with the nearest name if ``name`` stands for no optimizer."""
    if name in OPTIMIZERS or name == LBFGS:
        return taken_problems(name, optimizers)
    if is_factory(name, optimizers):
        factories = optimizer_factories()
        known = name in factories
        return [] if known else [f"name: found {name!r}. {did_you_mean(name, factories)}"]
    return [
        f"name: found {name!r}. {did_you_mean(name, [*OPTIMIZERS, LBFGS, *optimizers])} "
        f"Any optimizer of Optax works as '{PREFIX}NAME' with kwargs."
    ]


def momentum_problems(name: str, numbers: Numbers) -> list[str]:
    """Returns the given momentum options that the optimizer would not read."""
    entry = OPTIMIZERS.get(name)
    advice = "Put it into kwargs." if is_factory(name, optimizers) else "Remove it."
    found = []
    if numbers.momentum is not None and not (entry and entry.takes_momentum):
        found.append(
            f"momentum: found {numbers.momentum}, which {name} does not read "
            f"(sgd and rmsprop do). {advice}"
        )
    if numbers.nesterov and not (entry and entry.takes_nesterov):
        found.append(f"nesterov: found True, which {name} does not read. {advice}")
    elif numbers.nesterov and entry and entry.takes_momentum and numbers.momentum is None:
        found.append(f"nesterov: found True; {name} needs a momentum for it. Set momentum.")
    return found
