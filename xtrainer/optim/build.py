"""One optimizer from one config: clipping, the optimizer, weight decay, the learning rate."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import optax

from xtrainer.config import Config, check_configs
from xtrainer.errors import ConfigError
from xtrainer.optim.ema import with_average
from xtrainer.optim.extra import trial_extra, trial_params
from xtrainer.optim.groups import (
    REST,
    ParamGroupConfig,
    check_groups,
    decay_groups,
    decays_of,
    group_problems,
    label_params,
    part_groups,
    scale_by_rates,
)
from xtrainer.optim.lbfgs import LBFGS, lbfgs_parts, lbfgs_problems
from xtrainer.optim.masks import check_frozen, path_mask, pattern_problems, warn_of_patterns
from xtrainer.optim.optax_names import PREFIX, call_problems, is_factory, optimizer_factories
from xtrainer.optim.optimizers import OPTIMIZERS, Numbers, momentum_problems, name_problems
from xtrainer.optim.rate import build_schedules, source_problems
from xtrainer.optim.regularization import RegularizationConfig, make_pattern_check
from xtrainer.optim.schedules import SchedulerConfig
from xtrainer.optim.transforms import (
    check_at_init,
    clip_by_global_norm,
    clip_each_norm,
    decay_after_rate,
    decay_in_rate,
    freeze,
    in_turn,
)
from xtrainer.optim.turns import in_turns, turn_problems
from xtrainer.registry import optimizers
from xtrainer.types import PyTree, Schedule


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """How gradients become updates.

    The gradients are clipped by their global norm, then by the norm of each parameter's, then by
    value; then come the optimizer, the weight decay and the learning rate. What is clipped is the
    gradient of the whole batch, with no scale of the loss left in it.
    """

    name: str = "adamw"
    """``adam``, ``adamw``, ``nadam``, ``nadamw``, ``adamax``, ``adamaxw``, ``radam``, ``lamb``,
    ``lion``, ``sgd``, ``rmsprop``, ``adagrad``, ``lbfgs``, or ``optax.NAME`` (also
    ``optax.contrib.NAME``) for an optimizer of Optax, which gets ``kwargs`` and the schedule as
    ``learning_rate``, and reads none of the betas, ``eps``, ``momentum`` and ``nesterov``; or a
    name given to :func:`register_optimizer`, which is called in the same way."""
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    """The learning rate."""
    scale_lr_with: tuple[Literal["workers", "accumulation"], ...] = ()
    """What the learning rate grows with, at every step of the schedule: the devices that share a
    batch, and the micro-batches of a step. For rates that were found on one device and without
    accumulation, where each keeps the size of its batch. A run that goes on with another number of
    them goes on with their rate."""
    scale_lr_rule: Literal["linear", "sqrt", "constant"] = "linear"
    """How: times their number, times its square root, or not at all."""
    beta1: float = 0.9
    """Decay of the average gradient (the Adam family, lamb, lion)."""
    beta2: float = 0.999
    """Decay of the average squared gradient (the Adam family, lamb, rmsprop); of the momentum in
    lion, whose authors use 0.99."""
    eps: float = 1e-8
    """Added to the denominator (all but sgd and lion)."""
    momentum: float | None = None
    """Decay of the accumulated update (sgd, rmsprop); None: nothing is accumulated."""
    nesterov: bool = False
    """Look one step ahead (adam, adamw, radam; sgd and rmsprop with momentum; nadam always)."""
    weight_decay: float = 0.0
    """Shrinks parameters by ``lr * weight_decay`` of themselves at each update, under every name
    and apart from the gradient. At 0, an ``optax.NAME`` keeps the decay that is its default."""
    weight_decay_include: tuple[str, ...] | None = None
    """Patterns of the paths of the parameters that decay; None: all."""
    weight_decay_exclude: tuple[str, ...] | None = None
    """Patterns of the paths of parameters that do not decay, even if included."""
    grad_clip_norm: float | None = None
    """Largest global norm of the gradient; None: any."""
    grad_clip_norm_per_param: float | None = None
    """Largest norm of one parameter's gradient, after the clipping by global norm; None: any."""
    grad_clip_value: float | None = None
    """Largest absolute value of a gradient's element, after the clipping by norms; None: any."""
    regularization: RegularizationConfig | None = None
    """What training adds to the loss so that parameters stay small; None: nothing."""
    freeze: tuple[str, ...] = ()
    """Patterns of the paths of parameters that stay as they are: for them no gradient is computed,
    no moments are kept, and no weight decays."""
    memory_size: int = 10
    """Updates that lbfgs remembers, each in two copies of the parameters."""
    max_linesearch_steps: int = 20
    """Evaluations of loss and gradient that lbfgs makes at most to find how far an update goes,
    all of the batch of its step. It has no learning rate, weight decay or clipping."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of an ``optax.NAME`` or registered optimizer."""
    groups: tuple[ParamGroupConfig, ...] = ()
    """Parameters with a learning rate or a weight decay of their own."""
    in_turns: bool = False
    """Whether each group has moments, counts and clipping of its own, so that one can be moved
    without the others, see :func:`xtrainer.make_turns_step`."""
    ema_decay: float | None = None
    """Decay of an average of the parameters that the optimizer's state keeps, see
    :func:`xtrainer.optim.with_average`; None: there is none. ``EMAConfig`` evaluates with it."""

    @property
    def numbers(self) -> Numbers:
        """What the optimizers of the table read."""
        return Numbers(self.beta1, self.beta2, self.eps, self.momentum, self.nesterov)

    def problems(self) -> list[str]:
        """Returns names, numbers, patterns and arguments that cannot make an optimizer."""
        unknown = name_problems(self.name)
        found = unknown + _number_problems(self)
        found += group_problems(self.name, self.groups) + lbfgs_problems(self)
        found += turn_problems(self.in_turns, self.groups, self.ema_decay)
        for name in ("weight_decay_include", "weight_decay_exclude", "freeze"):
            found += pattern_problems(name, getattr(self, name))
        if not unknown:
            found += momentum_problems(self.name, self.numbers)
        if is_factory(self.name, optimizers):
            return found if unknown else found + _optax_problems(self)
        if self.kwargs:
            found.append(
                f"kwargs: found {dict(self.kwargs)!r} with name={self.name!r}, expected none; "
                f"they belong to registered names and those that begin with {PREFIX!r}."
            )
        return found


class BuiltOptimizer(NamedTuple):
    """An optimizer and the learning rate it follows.

    Attributes:
        transform: The Optax transformation.
        schedule: Learning rate by the number of updates made; None where it is not known.
    """

    transform: optax.GradientTransformation
    schedule: Schedule | None


def build_optimizer(
    config: OptimizerConfig | optax.GradientTransformation,
    workers: int = 1,
    micro_batches: int = 1,
) -> BuiltOptimizer:
    """Returns the optimizer of a config, or wraps a transformation that is ready.

    The state is a mapping with the keys ``clip_norm, clip_value, optimizer, weight_decay`` and
    ``learning_rate`` (which an ``optax.NAME`` holds inside ``optimizer``), whatever is switched on;
    with ``ema_decay`` it is ``inner`` of an :class:`xtrainer.optim.AverageState`, with ``in_turns``
    there is one in ``inner`` of a :class:`xtrainer.optim.TurnsState` for each group. Making it
    raises a ``ConfigError`` for a pattern of ``freeze`` or of a group that names no parameter.

    Args:
        config: The config, or the transformation.
        workers: Devices among which a batch is divided, for ``scale_lr_with``.
        micro_batches: Those of a step, for the same.

    Raises:
        ConfigError: Listing every mistake of the config; or because an ``optax.NAME`` cannot be
            built from its arguments or needs more than gradients, parameters and what
            :func:`xtrainer.make_train_step` passes on.

    Example:
        >>> import jax.numpy as jnp
        >>> transform, schedule = build_optimizer(OptimizerConfig(name="sgd", weight_decay=0.1))
        >>> params = {"w": jnp.ones(1)}
        >>> updates, _ = transform.update({"w": jnp.zeros(1)}, transform.init(params), params)
        >>> round(float(updates["w"][0]), 6)
        -0.0001
    """
    if isinstance(config, optax.GradientTransformation):
        return BuiltOptimizer(config, None)
    if not isinstance(config, OptimizerConfig):
        raise ConfigError(
            f"optimizer: found {config!r} ({type(config).__name__}), expected an OptimizerConfig "
            "or an optax.GradientTransformation."
        )
    check_configs(optimizer=config)
    rates = build_schedules(config, workers, micro_batches)
    schedule = None if config.name == LBFGS else rates[REST]
    transform = _checked(config, _chained(config, rates))
    if config.ema_decay is not None:
        transform = with_average(transform, config.ema_decay, path_mask(config.freeze, None))
    return BuiltOptimizer(transform, schedule)


def frozen_patterns(config: OptimizerConfig | optax.GradientTransformation) -> tuple[str, ...]:
    """Returns the patterns of the frozen parameters; a ready transformation has none."""
    return config.freeze if isinstance(config, OptimizerConfig) else ()


def regularization_of(
    config: OptimizerConfig | optax.GradientTransformation,
) -> RegularizationConfig | None:
    """Returns what is added to the loss; None where nothing is, as for a ready transformation."""
    return config.regularization if isinstance(config, OptimizerConfig) else None


def decayed_params(
    config: OptimizerConfig | optax.GradientTransformation, params: PyTree
) -> PyTree | None:
    """Returns which parameters have weight decay, as a tree of bools.

    None where that is not known: of a ready transformation, and of an ``optax.NAME`` that may have
    a decay of its own.

    Example:
        >>> config = OptimizerConfig(weight_decay=0.1, freeze=("embed",))
        >>> decayed_params(config, {"embed": 1.0, "head": 2.0})
        {'embed': False, 'head': True}
    """
    if not isinstance(config, OptimizerConfig):
        return None
    if config.weight_decay == 0 and is_factory(config.name, optimizers):
        return None
    decays = decays_of(config.groups, config.weight_decay)
    chosen = path_mask(config.weight_decay_include, config.weight_decay_exclude)(params)
    frozen = path_mask(config.freeze, None)(params)
    return jax.tree.map(
        lambda chosen, still, group: chosen and not still and decays[group] > 0,
        chosen,
        frozen,
        label_params(config.groups, params),
    )


Parts = tuple[tuple[str, optax.GradientTransformation], ...]


def _checked(
    config: OptimizerConfig, transform: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Returns the transformation for what is not frozen; patterns are checked with its state."""
    if _has_decay(config):
        transform = check_at_init(transform, warn_of_patterns(config))
    if config.freeze:
        transform = check_at_init(
            freeze(transform, path_mask(config.freeze, None)),
            lambda params: check_frozen(config.freeze, params),
        )
    if config.groups:
        transform = check_at_init(
            transform, lambda params: check_groups(config.groups, config.freeze, params)
        )
    if config.regularization is not None:
        check = make_pattern_check(config.regularization, config.freeze)
        transform = check_at_init(transform, check)
    return transform


def _chained(
    config: OptimizerConfig, rates: Mapping[str, Schedule]
) -> optax.GradientTransformation:
    """Returns the parts one after the other; with ``in_turns`` once for each group."""
    if not config.in_turns:
        return optax.named_chain(*_clips(config), *_moving_parts(config, rates))
    own = _own_configs(config)
    return in_turns(config.groups, {n: _chained(own[n], {REST: rates[n]}) for n in rates})


def _clips(config: OptimizerConfig) -> Parts:
    whole, each = config.grad_clip_norm, config.grad_clip_norm_per_param
    value = config.grad_clip_value
    norms = [] if whole is None else [clip_by_global_norm(whole)]
    norms += [] if each is None else [clip_each_norm(each)]
    return (
        # One key for both: with another one older checkpoints would not be read.
        ("clip_norm", in_turn(*norms)),
        ("clip_value", optax.identity() if value is None else optax.clip(value)),
    )


def _moving_parts(config: OptimizerConfig, rates: Mapping[str, Schedule]) -> Parts:
    """Returns what comes after the clipping."""
    if config.name == LBFGS:
        return lbfgs_parts(config.memory_size, config.max_linesearch_steps)
    if config.groups:
        return _grouped_parts(config, rates)
    own = is_factory(config.name, optimizers)
    return (_optax_parts if own else _table_parts)(config, rates[REST])


def _table_parts(config: OptimizerConfig, schedule: Schedule) -> Parts:
    mask = path_mask(config.weight_decay_include, config.weight_decay_exclude)
    return (
        ("optimizer", OPTIMIZERS[config.name].direction(config.numbers)),
        # Before the factor -lr, so that a zero gradient shrinks the weights under every name.
        ("weight_decay", decay_in_rate(config.weight_decay, mask)),
        ("learning_rate", optax.scale_by_learning_rate(schedule)),
    )


def _grouped_parts(config: OptimizerConfig, rates: Mapping[str, Schedule]) -> Parts:
    groups = config.groups
    if config.name in OPTIMIZERS:
        optimizer, *_ = _table_parts(config, rates[REST])
        mask = path_mask(config.weight_decay_include, config.weight_decay_exclude)
        # Direction and state are those of one optimizer: groups can come and go in a run.
        return (
            optimizer,
            ("weight_decay", decay_groups(groups, config.weight_decay, mask)),
            ("learning_rate", scale_by_rates(groups, rates)),
        )
    own = _own_configs(config)
    return tuple(part_groups(groups, {n: dict(_optax_parts(own[n], rates[n])) for n in rates}))


def _own_configs(config: OptimizerConfig) -> dict[str, OptimizerConfig]:
    """Returns the config of each group alone, and of the parameters of no group."""
    factory = optimizer_factories().get(config.name)
    takes_decay = factory and "weight_decay" in inspect.signature(factory).parameters
    kwargs = {group.name: dict(config.kwargs) for group in config.groups}
    kwargs[REST] = dict(config.kwargs)
    for group in config.groups:
        if group.weight_decay == 0 and takes_decay:
            kwargs[group.name]["weight_decay"] = 0.0  # its default is not what was asked for
    replace = functools.partial(dataclasses.replace, config, groups=(), in_turns=False)
    return {
        name: replace(weight_decay=decay, kwargs=kwargs[name])
        for name, decay in decays_of(config.groups, config.weight_decay).items()
    }


def _optax_parts(config: OptimizerConfig, schedule: Schedule) -> Parts:
    factory = optimizer_factories()[config.name]
    kwargs = dict(config.kwargs)
    mask = path_mask(config.weight_decay_include, config.weight_decay_exclude)
    decay = optax.identity()
    if config.weight_decay > 0:
        decay = decay_after_rate(config.weight_decay, schedule, mask)
        if "weight_decay" in inspect.signature(factory).parameters:
            kwargs["weight_decay"] = 0.0  # its default would come on top
    try:
        transform = factory(learning_rate=schedule, **kwargs)
        update = optax.with_extra_args_support(transform).update
        trial = lambda p: update(p, transform.init(p), p, **trial_extra(p))  # noqa: E731
        jax.eval_shape(trial, trial_params())
    except Exception as error:  # whatever Optax raises for arguments of the wrong kind
        raise ConfigError(
            f"optimizer: {config.name} with kwargs={dict(config.kwargs)!r} failed a trial "
            f"({type(error).__name__}: {error}). It must accept a schedule as learning_rate and "
            "work from gradients, parameters and the extra arguments value, grad and value_fn; "
            "otherwise pass a ready optax.GradientTransformation."
        ) from error
    return (("optimizer", transform), ("weight_decay", decay))


def _has_decay(config: OptimizerConfig) -> bool:
    return any(decays_of(config.groups, config.weight_decay).values())


def _number_problems(config: OptimizerConfig) -> list[str]:
    found = source_problems(config.scale_lr_with)
    for name in ("beta1", "beta2", "momentum"):
        value = getattr(config, name)
        if value is not None and not 0 <= value < 1:
            found.append(f"{name}: found {value}, expected a number >= 0 and < 1.")
    if config.ema_decay is not None and not 0 < config.ema_decay < 1:
        found.append(f"ema_decay: found {config.ema_decay}, expected a number > 0 and < 1.")
    if not (config.weight_decay >= 0 and math.isfinite(config.weight_decay)):
        found.append(f"weight_decay: found {config.weight_decay}, expected a finite number >= 0.")
    for name in ("eps", "grad_clip_norm", "grad_clip_norm_per_param", "grad_clip_value"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            found.append(f"{name}: found {value}, expected a number > 0.")
    return found


def _optax_problems(config: OptimizerConfig) -> list[str]:
    factory = optimizer_factories()[config.name]
    found = call_problems(config.name, factory, config.kwargs, "learning_rate")
    own_decay = [key for key in config.kwargs if key.startswith("weight_decay")]
    if own_decay and config.weight_decay > 0:
        found.append(
            f"weight_decay: found {config.weight_decay} beside kwargs.{own_decay[0]}="
            f"{config.kwargs[own_decay[0]]!r}. Give one of them."
        )
    patterns = config.weight_decay_include, config.weight_decay_exclude
    if patterns != (None, None) and not _has_decay(config):
        found.append(
            f"weight_decay: found 0 with patterns for it; they do not reach the decay inside "
            f"{config.name}. Set weight_decay, or remove weight_decay_include and _exclude."
        )
    return found
