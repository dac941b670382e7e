"""What did the loss function return? Every form becomes a weighted sum over a weight."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from xtrainer.errors import LossError, did_you_mean
from xtrainer.metrics import LOG_MODES, MetricLayout
from xtrainer.step.apply import BoundApply
from xtrainer.step.precision import cast_floating
from xtrainer.step.rows import arrange_rows, inner_layout
from xtrainer.step.settings import StepSettings
from xtrainer.tree import flatten_with_paths
from xtrainer.types import ApplyFn, BatchLike, LossFunction, PRNGKey, PyTree

TERM_KEYS = ("value", "count", "log_modes")


class LossTerms(flax.struct.PyTreeNode):
    """The sums of one (micro-)batch.

    Attributes:
        value: float32 ``()``, weighted sum of the loss; this is what is differentiated.
        weight: float32 ``()``, its weight.
        sums: float32 ``(metrics,)``, weighted sums of the metrics.
        counts: float32 ``(metrics,)``, their weights.
        mutable: The mutable collections after the call.
        layout: Names and log modes of the metrics; static.
        paddable: Whether padded rows can be masked out of loss and metrics exactly; static.
    """

    value: jax.Array
    weight: jax.Array
    sums: jax.Array
    counts: jax.Array
    mutable: dict[str, Any]
    layout: MetricLayout = flax.struct.field(pytree_node=False)
    paddable: bool = flax.struct.field(pytree_node=False)


def evaluate_loss(
    loss_function: LossFunction,
    apply_fn: ApplyFn,
    settings: StepSettings,
    params: PyTree,
    mutable: Mapping[str, Any],
    batch: BatchLike,
    row_mask: jax.Array,
    rng: PRNGKey,
    train: bool,
) -> LossTerms:
    """Returns the sums of a batch.

    Args:
        loss_function: The user's loss.
        apply_fn: The model's ``apply``.
        settings: Log modes, precision.
        params: Parameters in the dtype of computation.
        mutable: Mutable collections.
        batch: A pytree with a leading batch axis.
        row_mask: bool ``(rows,)``, False for padding.
        rng: Key of this micro-batch.
        train: Passed to the loss; a training metric is logged as ``settings`` says, an evaluation
            metric as its mean.

    Raises:
        LossError: For a return value that is none of the documented forms.
    """
    inner = inner_layout(settings.layout)
    batch, row_mask = arrange_rows((batch, row_mask), settings.layout, inner)
    settings = dataclasses.replace(settings, layout=inner)
    bound = BoundApply(apply_fn, mutable, settings, row_mask.shape[0], train)
    loss, metrics, returned = _unpack(loss_function(params, bound, batch, rng, train=train))
    updates = {**bound.gathered, **returned}
    intermediates = updates.pop("intermediates", {})
    value, weight, paddable = reduce_term("the loss", loss, row_mask)
    terms = {"loss": loss, **metrics}
    modes = {
        name: _modes(name, term, settings.train_log_modes, train) for name, term in terms.items()
    }
    if train and settings.log_intermediates:
        sown = flatten_intermediates(intermediates)
        terms |= sown
        modes |= {name: tuple(settings.intermediates_log_modes) for name in sown}
    reduced = [reduce_term(f"the metric {name!r}", term, row_mask) for name, term in terms.items()]
    # Sown values are scalars of the whole batch; they describe the model and do not forbid padding.
    own = len({"loss", *metrics})
    return LossTerms(
        value=value,
        weight=weight,
        sums=jnp.stack([term[0] for term in reduced]),
        counts=jnp.stack([term[1] for term in reduced]),
        mutable=_checked_mutable(mutable, updates) if train else dict(mutable),
        layout=MetricLayout.of(modes),
        paddable=paddable and all(term[2] for term in reduced[:own]),
    )


def describe_loss(
    loss_function: LossFunction,
    apply_fn: ApplyFn,
    settings: StepSettings,
    state: Any,
    batch: BatchLike,
    rows: int,
    train: bool,
) -> LossTerms:
    """Returns the shapes of :func:`evaluate_loss`'s result without computing anything.

    Raises:
        LossError: If the loss cannot be called as it will be, or returns something else than the
            documented forms.

    Args:
        loss_function: The user's loss.
        apply_fn: The model's ``apply``.
        settings: As for the step.
        state: A ``TrainState`` of arrays or ``ShapeDtypeStruct``s.
        batch: The batch, or its shapes.
        rows: Rows of the batch.
        train: Which of the two steps is asked about.
    """

    def forward(
        params: PyTree, mutable: Any, batch: BatchLike, mask: jax.Array, rng: PRNGKey
    ) -> Any:
        params = cast_floating(params, settings.precision.compute_dtype)  # as the steps do
        return evaluate_loss(
            loss_function, apply_fn, settings, params, mutable, batch, mask, rng, train
        )

    _check_signature(loss_function)
    mask = jax.ShapeDtypeStruct((rows,), jnp.bool_)
    return jax.eval_shape(forward, state.params, state.mutable_variables, batch, mask, state.rng)


def _check_signature(loss_function: LossFunction) -> None:
    try:
        signature = inspect.signature(loss_function)
    except (TypeError, ValueError):  # it does not say
        return
    try:
        signature.bind(None, None, None, None, train=True)
    except TypeError as error:
        raise LossError(
            f"Found loss_function{signature}, which cannot be called with (params, apply_fn, "
            f"batch, rng, train=True): {error}. Give it these arguments."
        ) from None


def reduce_term(name: str, term: Any, row_mask: jax.Array) -> tuple[jax.Array, jax.Array, bool]:
    """Returns ``(weighted sum, weight, whether padding is masked)`` of a loss or metric.

    Args:
        name: How messages call it.
        term: A scalar, an array with one value per example (or token), or a mapping with ``value``
            and ``count``.
        row_mask: bool ``(rows,)``, False for padding.

    Raises:
        LossError: For anything else, with the shape that was found.
    """
    if isinstance(term, Mapping):
        unknown = [key for key in term if key not in TERM_KEYS]
        if unknown or "value" not in term:
            found = f"found the keys {sorted(term)}, expected 'value' and 'count'"
            raise LossError(
                f"{name} is a mapping: {found}. {did_you_mean(str(unknown), TERM_KEYS)}"
            )
        if term.get("count") is not None:
            return _reduce_pair(name, term["value"], term["count"], row_mask)
        term = term["value"]
    value = _as_float(name, term)
    mask = row_mask.astype(jnp.float32)
    if value.ndim == 0:
        weight = mask.sum()
        return value * weight, weight, False
    weights = jnp.broadcast_to(_align(name, mask, value, row_mask), value.shape)
    return _masked_sum(value, weights), weights.sum(), True


def flatten_intermediates(intermediates: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns what a model sowed as metrics by path.

    A scalar gives one metric, a vector (scanned layers) one per entry, several calls of ``sow`` one
    each, numbered from 0.

    Raises:
        LossError: For an array of more than one axis.
    """
    metrics: dict[str, jax.Array] = {}
    sown = {path: jnp.asarray(leaf) for path, leaf in flatten_with_paths(intermediates).items()}
    for path, leaf in sown.items():
        alone = f"{path.removesuffix('/0')}/1" not in sown
        name = path.removesuffix("/0") if alone else path
        if leaf.ndim > 1:
            raise LossError(
                f"The intermediate {path!r} has the shape {leaf.shape}, expected a scalar. Sow its "
                "mean, or sow it into another collection than 'intermediates'."
            )
        entries = [leaf] if leaf.ndim == 0 else list(leaf)
        for index, entry in enumerate(entries):
            metrics[name if leaf.ndim == 0 else f"{name}_{index}"] = entry.astype(jnp.float32)
    return metrics


def _unpack(output: Any) -> tuple[Any, Mapping[str, Any], Mapping[str, Any]]:
    expected = "expected (loss, (metrics, mutable_variables))"
    if not isinstance(output, tuple) or len(output) != 2:
        raise LossError(
            f"loss_function returned {_what(output)}, {expected}. Write: return loss, ({{}}, {{}})"
        )
    loss, aux = output
    if not isinstance(aux, tuple | list) or len(aux) != 2:
        raise LossError(
            f"loss_function returned (loss, {_what(aux)}), {expected}. Write: return loss, "
            "(metrics, {}); use {} where there is nothing to return."
        )
    metrics, mutable = ({} if part is None else part for part in aux)
    if not isinstance(metrics, Mapping) or not isinstance(mutable, Mapping):
        found = f"{type(metrics).__name__} and {type(mutable).__name__}"
        raise LossError(f"Metrics and mutable variables are {found}, expected two dictionaries.")
    return loss, metrics, mutable


def _what(found: Any) -> str:
    """Returns what a value is, in the words of a person who has not written a tracer."""
    if isinstance(found, jax.Array):
        return f"an array of shape {found.shape}"
    length = f" of {len(found)}" if isinstance(found, tuple | list) else ""
    return f"a {type(found).__name__}{length}"


def _modes(name: str, term: Any, default: tuple[str, ...], train: bool) -> tuple[str, ...]:
    if not train:
        return ("mean_nopostfix",)
    chosen = term.get("log_modes") if isinstance(term, Mapping) else None
    chosen = default if chosen is None else (chosen,) if isinstance(chosen, str) else tuple(chosen)
    unknown = [mode for mode in chosen if mode not in LOG_MODES]
    if unknown:
        hint = did_you_mean(str(unknown[0]), LOG_MODES)
        raise LossError(f"The metric {name!r} asks for the log mode {unknown[0]!r}. {hint}")
    return chosen


def _as_float(name: str, value: Any) -> jax.Array:
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise LossError(
            f"{name} is a {type(value).__name__}, expected an array: a scalar, one value per "
            "example, or {'value': ..., 'count': ...}."
        ) from error
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise LossError(f"{name} has the dtype {array.dtype}, expected a real number.")
    return array.astype(jnp.float32)


def _reduce_pair(
    name: str, value: Any, count: Any, row_mask: jax.Array
) -> tuple[jax.Array, jax.Array, bool]:
    value, count = _as_float(name, value), _as_float(name, count)
    if value.ndim == 0 and count.ndim == 0:
        return value, count, False
    if value.ndim < count.ndim or count.ndim == 0 or value.shape[: count.ndim] != count.shape:
        raise LossError(
            f"{name}: found a value of shape {value.shape} and a count of shape {count.shape}, "
            "expected two scalars (a sum and its weight) or two arrays of one entry per example."
        )
    count = jnp.broadcast_to(
        count.reshape(count.shape + (1,) * (value.ndim - count.ndim)), value.shape
    )
    weights = count * _align(name, row_mask.astype(jnp.float32), value, row_mask)
    return _masked_sum(value, weights), weights.sum(), True


def _align(name: str, mask: jax.Array, value: jax.Array, row_mask: jax.Array) -> jax.Array:
    rows = row_mask.shape[0]
    if value.shape[0] != rows:
        raise LossError(
            f"{name} has the shape {value.shape} for a batch of {rows} rows, expected a scalar or "
            f"an array whose first axis is {rows}."
        )
    return mask.reshape((rows,) + (1,) * (value.ndim - 1))


def _masked_sum(value: jax.Array, weights: jax.Array) -> jax.Array:
    # Selected, not multiplied: the sum takes nothing from a value without weight, also if it is
    # NaN. Its gradient may be NaN all the same (0 * NaN, further back); the guard refuses that.
    return jnp.sum(jnp.where(weights != 0, value, 0.0) * weights)


def _checked_mutable(old: Mapping[str, Any], updates: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(updates) - set(old))
    if unknown:
        raise LossError(
            f"The loss returned the mutable collections {unknown}, the state has {sorted(old)}. "
            "Collections are created by the model's init; return only those."
        )
    new = {**old, **updates}
    before, after = flatten_with_paths(dict(old)), flatten_with_paths(new)
    for path in sorted(set(before) | set(after)):
        kinds = [
            f"{tree[path].dtype}{list(tree[path].shape)}" if path in tree else "nothing"
            for tree in (before, after)
        ]
        if kinds[0] != kinds[1]:
            raise LossError(
                f"The mutable variable {path!r} is {kinds[1]} after the loss and {kinds[0]} in the "
                "state; shapes and dtypes must not change."
            )
    return new
