"""What is the learning rate multiplied by? By all that has changed it since training began."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import optax

from xtrainer.callbacks import Callback
from xtrainer.errors import CheckpointCorruptError, CheckpointError, ConfigError
from xtrainer.optim import OptimizerConfig, is_scalable, set_update_scale
from xtrainer.parallel import put_global
from xtrainer.state import Progress
from xtrainer.trainer.config import TrainerConfig
from xtrainer.types import PyTree, Schedule


class RatedTrainer(Protocol):
    """A trainer as these functions see it."""

    state: Any
    trainer_config: TrainerConfig
    optimizer_config: OptimizerConfig | optax.GradientTransformation
    progress: Progress
    callbacks: list[Callback]
    rates: "RateFactors"


class RateFactors:
    """By what the learning rate was multiplied in the steps of a run whose rows may still come.

    Args:
        now: The factor when the run begins.

    Example:
        >>> factors = RateFactors(1.0)
        >>> factors.change(10, 0.5)
        >>> factors.of_update(10, now=0.5), factors.of_update(11, now=0.5)
        (1.0, 0.5)
    """

    def __init__(self, now: float = 1.0) -> None:
        self._now = now
        self._before: list[tuple[int, float]] = []

    def change(self, step: int, factor: float) -> None:
        """Notes the factor of the updates after a step."""
        earlier = [(last, old) for last, old in self._before if last < step]
        same = next((old for last, old in self._before if last == step), self._now)
        self._before = [*earlier[-8:], (step, same)]  # rows come late, but not so late
        self._now = factor

    def of_update(self, step: int, now: float) -> float:
        """Returns the factor that the update of a step was made with; ``now`` that of the next."""
        return next((old for last, old in self._before if step <= last), now)


def rate_at(schedule: Schedule, updates: int) -> float:
    """Returns the learning rate after a number of updates.

    It is computed by the CPU, where JAX has one: an accelerator takes the steps in flight before.
    """
    try:
        place: Any = jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        place = contextlib.nullcontext()
    with place:
        return float(jax.device_get(schedule(updates)))


def changes_rate(config: TrainerConfig) -> bool:
    """Says whether anything in a run may multiply its learning rate."""
    return config.rollback_lr_scale != 1 or any(c.changes_learning_rate for c in config.callbacks)


def rate_factor(config: TrainerConfig, progress: Progress, callbacks: Sequence[Callback]) -> float:
    """Returns what the schedule's rate is multiplied by for the next step."""
    scale = config.rollback_lr_scale ** len(progress.rollbacks)
    return scale * math.prod(callback.learning_rate_factor for callback in callbacks)


@contextlib.contextmanager
def explained_factor(opt_state: PyTree) -> Iterator[None]:
    """Adds what may be the reason to the error of a checkpoint that does not fit an optimizer."""
    try:
        yield
    except CheckpointError as error:
        if is_scalable(opt_state) and not isinstance(error, CheckpointCorruptError):
            error.add_note(
                "This run may change its learning rate (a callback that does, or a "
                "rollback_lr_scale), for which its optimizer's state has a factor: it cannot go on "
                "from a checkpoint of a run that could not. Leave that out, or take the model "
                "alone (load_pretrained_model with load_optimizer=False)."
            )
        raise


def set_rate(trainer: RatedTrainer) -> None:
    """Makes the state of the optimizer follow :func:`rate_factor`; nothing is compiled anew.

    Raises:
        ConfigError: If the optimizer was not made for that, or searches its step sizes itself.
    """
    factor = rate_factor(trainer.trainer_config, trainer.progress, trainer.callbacks)
    opt_state = trainer.state.opt_state
    if not is_scalable(opt_state):
        if factor == 1:
            return
        raise ConfigError(
            f"The learning rate is to be multiplied by {factor:g}, and this optimizer was built "
            "without a factor. Name what changes it in TrainerConfig(callbacks=[...]), by a config "
            "whose changes_learning_rate is True."
        )
    name = getattr(trainer.optimizer_config, "name", "")
    if name.rpartition(".")[2] == "lbfgs":
        raise ConfigError(
            f"optimizer: found {name!r} with a callback or a rollback_lr_scale that changes the "
            "learning rate, expected another optimizer: this one searches the length of each step "
            "itself. Leave the callback out, or use another optimizer."
        )
    with jax.transfer_guard("allow"):
        opt_state = set_update_scale(opt_state, factor, put_global)
    trainer.state = trainer.state.replace(opt_state=opt_state)
    trainer.rates.change(trainer.progress.step, factor)
