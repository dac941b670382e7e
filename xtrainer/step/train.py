"""What does a training step do? Gradient, update, guard, metrics: one pure function."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from xtrainer.errors import LossError
from xtrainer.metrics import (
    DeviceMetrics,
    MetricLayout,
    accumulate,
    norms_per_param,
)
from xtrainer.state import TrainState
from xtrainer.step.gradients import BatchGradient, mean_loss
from xtrainer.step.guard import all_finite, guard_step, report_of
from xtrainer.step.objective import ValueFn, make_objective_fn
from xtrainer.step.order import Line
from xtrainer.step.scaling import Overflow, scale_of
from xtrainer.step.settings import StepSettings
from xtrainer.step.signals import reduce_signals
from xtrainer.tree import flatten_with_paths
from xtrainer.types import ApplyFn, BatchLike, LossFunction, PyTree

TrainStepFn = Callable[..., tuple[TrainState, DeviceMetrics, jax.Array]]


def make_train_step(
    loss_function: LossFunction,
    apply_fn: ApplyFn,
    optimizer: optax.GradientTransformation,
    settings: StepSettings | None = None,
) -> TrainStepFn:
    """Returns ``step(state, batch, row_mask, metrics, signals) -> (state, metrics, report)``.

    The function is pure and not compiled; the last three arguments may be left out. ``row_mask``
    (bool ``(rows,)``) is False for padded rows; ``metrics`` is the window to add to, a new one
    where None; ``signals`` (int32 ``(devices,)``) is what processes say to each other, see
    ``xtrainer.step.signals``; ``report`` is int32 ``(7,)``, see
    :class:`xtrainer.step.StepReport`. Random numbers come from ``(state.rng, step, micro-batch)``.

    Args:
        loss_function: ``(params, apply_fn, batch, rng, train) -> (loss, (metrics, mutable))``.
        apply_fn: The model's ``apply(variables, *args, **kwargs)``.
        optimizer: Any Optax transformation; :func:`propose` says what it may read.
        settings: What else the step does.

    Example:
        >>> def loss(params, apply_fn, batch, rng, train=True):
        ...     return (apply_fn(params, batch["x"]) - batch["y"]) ** 2, ({}, {})
        >>> step = make_train_step(loss, lambda params, x: x * params["w"], optax.sgd(0.1))
        >>> state = TrainState.create({"w": jnp.zeros(())}, optax.sgd(0.1), jax.random.key(0))
        >>> state, _, _ = jax.jit(step)(state, {"x": jnp.ones(4), "y": jnp.ones(4)})
        >>> round(float(state.params["w"]), 3)
        0.2
    """
    settings = settings or StepSettings()
    objective = make_objective_fn(loss_function, apply_fn, settings)

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
        rng = jax.random.fold_in(state.rng, state.step)
        scale = scale_of(settings.precision, state.guard)
        parts = (state.mutable_variables, batch, row_mask, rng, scale)
        result, value_fn = objective(state.params, *parts)
        line, terms = Line(settings.in_line), result.terms
        updates, proposed = propose(optimizer, state, result, line, value_fn)
        # The norm of the gradient, as a square that overflows would stay in the second moments.
        norm = line.norm(result.grads, updates)
        norms = norm_values(norm, result.grads, state.params, settings, line)
        norms += [x for x in (scale, result.penalty) if x is not None]
        finite = all_finite(terms.value, terms.weight, norm, terms.mutable) & is_read(norms)
        said = None if signals is None else reduce_signals(signals)
        decide = (settings.nonfinite_limit, said, line, overflow_of(state, result, settings))
        new_state, accepted = guard_step(state, proposed, finite, *decide)
        metrics = _add_metrics(settings, metrics, result, norms, state.params, accepted)
        return stored(new_state, settings), metrics, report_of(state, new_state, row_mask, said)

    return train_step


def propose(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    result: BatchGradient,
    line: Line,
    value_fn: ValueFn,
) -> tuple[PyTree, TrainState]:
    """Returns the updates of the parameters, and the state as they would leave it.

    Args:
        optimizer: One that takes extra arguments gets ``value``, the mean loss; ``grad``, the
            gradient; and ``value_fn``.
        state: Before the step.
        result: The gradient.
        line: What the updates wait in.
        value_fn: From parameters to the mean loss of the same batch; it can be differentiated.
    """
    extra = {"value": mean_loss(result.terms), "grad": result.grads, "value_fn": value_fn}
    update = optax.with_extra_args_support(optimizer).update
    updates, opt_state = update(result.grads, state.opt_state, state.params, **extra)
    updates = line.hold(updates)
    return updates, state.replace(
        params=optax.apply_updates(state.params, updates),
        opt_state=_with_dtypes(opt_state, state.opt_state),
        mutable_variables=result.terms.mutable,
    )


def overflow_of(
    state: TrainState, result: BatchGradient, settings: StepSettings
) -> Overflow | None:
    """Returns what the step says to a dynamic scale of the loss; None where there is none."""
    precision, terms = settings.precision, result.terms
    if precision.loss_scale != "dynamic":
        return None
    forward = all_finite(terms.value, terms.weight, terms.mutable)
    lowers = forward & ~all_finite(result.grads) & (state.guard.scale_exponent > 0)
    return Overflow(lowers, precision.loss_scale_growth_steps)


def train_layout(
    terms_layout: MetricLayout, params: PyTree, settings: StepSettings
) -> MetricLayout:
    """Returns the layout of a training step's metrics: of the loss, then norms and the like.

    Raises:
        LossError: If the loss returned a metric that is called like one of them.
    """
    own: dict[str, tuple[str, ...]] = dict.fromkeys(norm_names(params, settings), ("mean",))
    if settings.precision.loss_scale is not None:
        own["loss_scale"] = ("mean_nopostfix",)
    if settings.regularization is not None:
        own["regularization"] = ("mean",)
    taken = [name for name in own if name in terms_layout.names]
    if taken:
        raise LossError(
            f"The loss returned the metrics {taken}, which are names of what the step logs "
            "itself. Rename them, or turn off what logs them (log_grad_norm, log_param_norm, "
            "regularization)."
        )
    return MetricLayout.of(dict(zip(terms_layout.names, terms_layout.modes, strict=True)) | own)


def on_devices(state: TrainState, settings: StepSettings) -> TrainState:
    """Returns the state with all of the optimizer's in the memory of the devices."""
    places = settings.opt_state_shardings
    if places is None:
        return state
    places = jax.tree.map(lambda place: place.with_memory_kind("device"), places)
    return state.replace(opt_state=jax.device_put(state.opt_state, places))


def stored(state: TrainState, settings: StepSettings) -> TrainState:
    """Returns the state with the optimizer's where it lies between steps."""
    places = settings.opt_state_shardings
    if places is None:
        return state
    return state.replace(opt_state=jax.device_put(state.opt_state, places))


def _with_dtypes(tree: PyTree, like: PyTree) -> PyTree:
    # Moments in the parameters' bfloat16 would be widened by the gradient's float32.
    return jax.tree.map(lambda x, y: x if x.dtype == y.dtype else x.astype(y.dtype), tree, like)


def is_read(norms: list[jax.Array]) -> jax.Array | bool:
    """Returns what is always true, which XLA does not know.

    What writes new parameters waits for the norms of the old ones, which would otherwise be copied
    for them.
    """
    values = jnp.asarray(norms, jnp.float32)
    return jnp.all((values >= 0) | jnp.isnan(values))


def norm_names(params: PyTree, settings: StepSettings) -> list[str]:
    """Returns the names of :func:`norm_values`."""
    paths = list(flatten_with_paths(params))
    names = ["grad_norm"] if settings.log_grad_norm else []
    names += ["param_norm"] if settings.log_param_norm else []
    names += [f"grad_norm/{path}" for path in paths if settings.log_grad_norm_per_param]
    names += [f"param_norm/{path}" for path in paths if settings.log_param_norm_per_param]
    return names


def norm_values(
    norm: jax.Array, grads: PyTree, params: PyTree, settings: StepSettings, line: Line
) -> list[jax.Array]:
    """Returns the norms that a step logs; ``norm`` is that of the whole gradient."""
    values = [norm] if settings.log_grad_norm else []
    values += [line.norm(params)] if settings.log_param_norm else []
    values += list(norms_per_param(grads).values()) if settings.log_grad_norm_per_param else []
    values += list(norms_per_param(params).values()) if settings.log_param_norm_per_param else []
    return values


def _add_metrics(
    settings: StepSettings,
    window: DeviceMetrics | None,
    result: BatchGradient,
    norms: list[jax.Array],
    params: PyTree,
    accepted: jax.Array,
) -> DeviceMetrics:
    if window is None:
        window = DeviceMetrics.zeros(train_layout(result.terms.layout, params, settings))
    measured = jnp.asarray(norms, jnp.float32)
    sums = jnp.concatenate([result.terms.sums, measured])
    counts = jnp.concatenate([result.terms.counts, jnp.ones_like(measured)])
    return accumulate(window, sums, counts, accepted)
