"""What is a step in which several losses take turns, each moving parameters of its own?"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from xtrainer.errors import ConfigError, LossError, did_you_mean
from xtrainer.metrics import DeviceMetrics, MetricLayout, accumulate
from xtrainer.optim import REST, ParamGroupConfig, label_params, takes_turns
from xtrainer.state import TrainState
from xtrainer.step.gradients import BatchGradient
from xtrainer.step.guard import all_finite, guard_step, report_of
from xtrainer.step.objective import make_objective_fn
from xtrainer.step.order import Line
from xtrainer.step.scaling import Overflow, scale_of
from xtrainer.step.settings import StepSettings
from xtrainer.step.signals import reduce_signals
from xtrainer.step.train import (
    TrainStepFn,
    is_read,
    norm_values,
    on_devices,
    overflow_of,
    propose,
    stored,
    train_layout,
)
from xtrainer.tree import flatten_with_paths, matches
from xtrainer.types import ApplyFn, BatchLike, LossFunction, PyTree

Term = tuple[jax.Array, jax.Array]
"""The weighted sum of a metric, and its weight."""


def make_turns_step(
    losses: Mapping[str, LossFunction],
    groups: Sequence[ParamGroupConfig],
    apply_fn: ApplyFn,
    optimizer: optax.GradientTransformation,
    settings: StepSettings | None = None,
) -> TrainStepFn:
    """Returns a training step of several turns, as of :func:`xtrainer.make_train_step`.

    In each turn one group of parameters is moved by the gradient of its own loss, with what the
    turns before it have made of the others. The step is still one: it counts as one, it is refused
    as a whole where one turn is not finite, and its random numbers are those of its number, with
    the number of the turn folded in.

    Logged are ``NAME_loss`` for each turn, as ``loss`` their sum, and what the losses return
    besides; of a metric that several return, that of the last turn. A trainer's ``loss_function``
    must return the same metrics while training.

    Args:
        losses: By the name of the group they move, in the order of the turns; ``rest`` for the
            parameters of no group.
        groups: Those of the optimizer.
        apply_fn: The model's ``apply(variables, *args, **kwargs)``.
        optimizer: That of an ``OptimizerConfig`` with ``in_turns=True``.
        settings: What else the step does; in every turn the batch and its micro-batches are the
            same.

    Raises:
        ConfigError: If a loss is of no group, or a group has no loss.

    Example:
        >>> import xtrainer as xt
        >>> groups = tuple(xt.ParamGroupConfig(name=n, params=(f"^{n}$",)) for n in ("up", "down"))
        >>> config = xt.OptimizerConfig(name="sgd", groups=groups, in_turns=True)
        >>> def rise(params, apply_fn, batch, rng, train=True):
        ...     return (params["up"] - batch["x"]) ** 2, ({}, {})
        >>> def fall(params, apply_fn, batch, rng, train=True):
        ...     return (params["down"] + params["up"]) ** 2, ({}, {})
        >>> optimizer, _ = xt.build_optimizer(config)
        >>> step = make_turns_step({"up": rise, "down": fall}, groups, None, optimizer)
        >>> params = {"up": jnp.zeros(()), "down": jnp.ones(())}
        >>> state = TrainState.create(params, optimizer, jax.random.key(0))
        >>> state, metrics, _ = step(state, {"x": jnp.ones(4)})
        >>> [name for name in metrics.layout.names if "loss" in name]
        ['loss', 'up_loss', 'down_loss']
    """
    _check_names(losses, groups)
    return _make_step(losses, groups, apply_fn, optimizer, settings or StepSettings())


def _make_step(
    losses: Mapping[str, LossFunction],
    groups: Sequence[ParamGroupConfig],
    apply_fn: ApplyFn,
    optimizer: optax.GradientTransformation,
    settings: StepSettings,
) -> TrainStepFn:
    def train_step(
        state: TrainState,
        batch: BatchLike,
        row_mask: jax.Array | None = None,
        metrics: DeviceMetrics | None = None,
        signals: jax.Array | None = None,
    ) -> tuple[TrainState, DeviceMetrics, jax.Array]:
        if row_mask is None:
            row_mask = jnp.ones(jax.tree.leaves(batch)[0].shape[0], bool)
        state = on_devices(state, settings)
        labels = _labels(losses, groups, state, settings)
        scale = scale_of(settings.precision, state.guard)
        line, taken = Line(settings.in_line), _Taken(settings)

        def turn(number: int, name: str, before: TrainState) -> tuple[PyTree, TrainState]:
            own = dataclasses.replace(settings, freeze=_all_but(name, labels, settings.freeze))
            objective = make_objective_fn(losses[name], apply_fn, own)
            rng = jax.random.fold_in(jax.random.fold_in(state.rng, state.step), number)
            parts = (before.mutable_variables, batch, row_mask, rng, scale)
            result, value_fn = objective(before.params, *parts)
            updates, after = propose(_of_turn(optimizer, name), before, result, line, value_fn)
            taken.add(name, after, result)
            return updates, after

        moved, updates = _in_order(turn, losses, state)
        norm = line.norm(taken.grads, updates)
        norms = norm_values(norm, taken.grads, state.params, settings, line)
        norms += [x for x in (scale, taken.penalty) if x is not None]
        finite = taken.finite & all_finite(norm) & is_read(norms)
        said = None if signals is None else reduce_signals(signals)
        decide = (finite, settings.nonfinite_limit, said, line, taken.overflow)
        new_state, accepted = guard_step(state, moved, *decide)
        metrics = taken.add_to(metrics, norms, state.params, accepted)
        return stored(new_state, settings), metrics, report_of(state, new_state, row_mask, said)

    return train_step


def _in_order(
    turn: Callable[[int, str, TrainState], tuple[PyTree, TrainState]],
    names: Iterable[str],
    state: TrainState,
) -> tuple[TrainState, PyTree]:
    """Returns the state after all turns, and the updates of all parameters."""
    updates = None
    for number, name in enumerate(names):
        part, state = turn(number, name, state)
        updates = part if updates is None else jax.tree.map(jnp.add, updates, part)
    return state, updates


class _Taken:
    """What the turns of a step have given so far."""

    def __init__(self, settings: StepSettings) -> None:
        self.settings = settings
        self.grads: PyTree = None  # that of each parameter from the turn that moves it
        self.penalty: jax.Array | None = None
        self.overflow: Overflow | None = None
        self.finite = jnp.ones((), bool)
        self.terms: dict[str, Term] = {}
        self.modes: dict[str, tuple[str, ...]] = {}

    def add(self, name: str, state: TrainState, result: BatchGradient) -> None:
        """Takes in a turn.

        Args:
            name: Of the turn.
            state: As it would leave it.
            result: Its gradient.
        """
        terms, settings = result.terms, self.settings
        if (overflow := overflow_of(state, result, settings)) is not None:
            lowers = self.finite & overflow.lowers  # a later turn only shows what the first has met
            lowers |= False if self.overflow is None else self.overflow.lowers
            self.overflow = Overflow(lowers, overflow.growth_steps)
        self.finite &= all_finite(terms.value, terms.weight, terms.mutable)
        if self.penalty is None or result.penalty is None:
            self.penalty = result.penalty
        else:
            self.penalty += result.penalty
        first = self.grads is None
        self.grads = result.grads if first else jax.tree.map(jnp.add, self.grads, result.grads)
        found = {n: (terms.sums[i], terms.counts[i]) for i, n in enumerate(terms.layout.names)}
        modes = dict(zip(terms.layout.names, terms.layout.modes, strict=True))
        own, total = found.pop("loss"), self.terms.get("loss")
        loss = own if total is None else _sum_of_means(total, own)
        self.terms |= {"loss": loss, f"{name}_loss": own, **found}
        self.modes |= {"loss": modes["loss"], f"{name}_loss": modes["loss"], **modes}

    def add_to(
        self,
        window: DeviceMetrics | None,
        norms: list[jax.Array],
        params: PyTree,
        accepted: jax.Array,
    ) -> DeviceMetrics:
        """Returns a window of metrics with those of the step.

        Raises:
            LossError: If the window is made for other metrics.
        """
        layout = train_layout(MetricLayout.of(self.modes), params, self.settings)
        window = DeviceMetrics.zeros(layout) if window is None else window
        if set(window.layout.names) != set(layout.names):
            raise LossError(
                f"The turns of a step give the metrics {sorted(set(self.terms) - {'loss'})}; "
                f"loss_function differs from them in "
                f"{sorted(set(window.layout.names) ^ set(layout.names))}. Let it return the same "
                "ones while training: NAME_loss for each turn, and what the turns return."
            )
        one = jnp.ones((), jnp.float32)
        names = [name for name in layout.names if name not in self.terms]
        every = self.terms | {name: (x, one) for name, x in zip(names, norms, strict=True)}
        sums, counts = zip(*(every[name] for name in window.layout.names), strict=True)
        as_float = lambda values: jnp.stack([jnp.asarray(x, jnp.float32) for x in values])  # noqa: E731
        return accumulate(window, as_float(sums), as_float(counts), accepted)


def _sum_of_means(total: Term, own: Term) -> Term:
    """Returns the sum of two means as one over the weight of the first."""
    (value, weight), (more, others) = total, own
    return value + more * weight / jnp.where(others == 0, 1.0, others), weight


def _of_turn(
    optimizer: optax.GradientTransformation, name: str
) -> optax.GradientTransformationExtraArgs:
    update = optax.with_extra_args_support(optimizer).update
    return optax.GradientTransformationExtraArgs(
        optimizer.init, functools.partial(update, turn=name)
    )


def _all_but(name: str, labels: Mapping[str, str], freeze: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the patterns of all parameters that a turn leaves as they are."""
    others = [re.escape(path) for path, label in labels.items() if label != name]
    return (*freeze, f"^(?:{'|'.join(others)})$") if others else freeze


def _check_names(losses: Mapping[str, LossFunction], groups: Sequence[ParamGroupConfig]) -> None:
    names = [group.name for group in groups]
    problems = [
        f"losses: found one for {name!r}, which is no group. {did_you_mean(name, [*names, REST])}"
        for name in losses
        if name not in (*names, REST)
    ]
    problems += [
        f"losses: found none for the group {name!r}, expected one for each. Its parameters would "
        "never move; OptimizerConfig.freeze keeps some as they are."
        for name in names
        if name not in losses
    ]
    if problems:
        raise ConfigError(problems)


def _labels(
    losses: Mapping[str, LossFunction],
    groups: Sequence[ParamGroupConfig],
    state: TrainState,
    settings: StepSettings,
) -> dict[str, str]:
    """Returns the group of each parameter by its path.

    Raises:
        ConfigError: If the optimizer cannot move one group alone, or a parameter has no turn.
    """
    if not takes_turns(state.opt_state):
        raise ConfigError(
            "optimizer: found one that moves all parameters at once, expected one that can move a "
            "group alone. Set in_turns=True in the OptimizerConfig of the groups."
        )
    labels = flatten_with_paths(label_params(groups, state.params))
    still = lambda path: any(matches(pattern, path) for pattern in settings.freeze)  # noqa: E731
    left = [path for path, name in labels.items() if name not in losses and not still(path)]
    if left:
        raise ConfigError(
            f"losses: found none for {left[:3]}, {len(left)} parameters of no group, expected one "
            f"for {REST!r}. Add it, let a group name them, or freeze them."
        )
    return labels
