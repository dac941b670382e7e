"""What is the gradient of a whole batch, in how many pieces?

Sums are accumulated and divided once by the whole weight, so that the number of micro-batches does
not change the result.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from xtrainer.errors import BatchError
from xtrainer.optim import RegularizationConfig, path_mask, regularization_fn
from xtrainer.parallel import BatchLayout
from xtrainer.step.loss import LossTerms, evaluate_loss
from xtrainer.step.precision import cast_floating
from xtrainer.step.scaling import scale_of_sum, unscaled
from xtrainer.step.settings import StepSettings
from xtrainer.types import ApplyFn, BatchLike, LossFunction, PRNGKey, PyTree


class BatchGradient(flax.struct.PyTreeNode):
    """The gradient of the mean loss of a batch.

    Attributes:
        grads: float32, the shape of the parameters; 0 for frozen ones.
        terms: The sums of the whole batch.
        penalty: float32 ``()``, what regularization has added to the mean loss; None for nothing.
    """

    grads: PyTree
    terms: LossTerms
    penalty: jax.Array | None = None


def make_micro_gradient_fn(
    loss_function: LossFunction, apply_fn: ApplyFn, settings: StepSettings
) -> tuple[Callable[..., Any], Callable[..., BatchGradient]]:
    """Returns ``loss_sum(trained, frozen, mutable, batch, row_mask, rng)`` and its gradient.

    The gradient takes ``((trained, frozen), mutable, batch, row_mask, rng, scale)``, see
    :func:`divide_frozen` and :func:`make_gradient_fn`. It is that of the sum, not divided by the
    weight.

    Args:
        loss_function: The user's loss.
        apply_fn: The model's ``apply``.
        settings: Precision, layout.
    """

    def loss_sum(
        trained: PyTree, frozen: PyTree, mutable: Any, batch: Any, mask: jax.Array, rng: PRNGKey
    ) -> tuple[jax.Array, LossTerms]:
        params = join_frozen(trained, frozen)
        terms = evaluate_loss(
            loss_function, apply_fn, settings, params, mutable, batch, mask, rng, train=True
        )
        return terms.value, terms

    return loss_sum, _make_micro_fn(loss_sum, settings)


def make_gradient_fn(
    loss_function: LossFunction, apply_fn: ApplyFn, settings: StepSettings
) -> Callable[..., BatchGradient]:
    """Returns ``gradient(params, mutable, batch, row_mask, rng, scale)``.

    ``scale``, float32 ``()``, is that of the loss while it is differentiated; the gradients are
    divided by it in float32, those of each micro-batch before they are added up. Where it is left
    out nothing is scaled.

    Args:
        loss_function: The user's loss.
        apply_fn: The model's ``apply``.
        settings: Micro-batches, precision, layout.
    """

    loss_sum, micro = make_micro_gradient_fn(loss_function, apply_fn, settings)

    def gradient(
        params: PyTree,
        mutable: Any,
        batch: BatchLike,
        mask: jax.Array,
        rng: PRNGKey,
        scale: jax.Array | None = None,
    ) -> BatchGradient:
        part, kept = functools.partial(micro, scale=scale), params
        params = cast_floating(params, settings.precision.compute_dtype)
        params = trained, frozen = divide_frozen(params, settings.freeze)
        start = _zeros_like(trained)
        total = _sum_up(part, loss_sum, start, params, mutable, (batch, mask), rng, settings)
        share = _share(total.terms)
        grads = jax.tree.map(lambda g: g * share, total.grads)
        grads = join_frozen(grads, _zeros_like(frozen))
        return _penalized(total.replace(grads=grads), kept, settings)

    return gradient


def make_value_fn(
    loss_function: LossFunction, apply_fn: ApplyFn, settings: StepSettings
) -> Callable[..., jax.Array]:
    """Returns ``value(params, mutable, batch, row_mask, rng)``: the mean loss, float32 ``()``.

    It is that of :func:`make_gradient_fn`, regularization included, without the gradient.

    Args:
        loss_function: The user's loss.
        apply_fn: The model's ``apply``.
        settings: As for the gradient.
    """
    loss_sum, _ = make_micro_gradient_fn(loss_function, apply_fn, settings)

    def part(params: tuple[PyTree, PyTree], *args: Any) -> BatchGradient:
        value, terms = loss_sum(*params, *args)
        return BatchGradient(value, terms)  # in place of a gradient: it ties ``_scan``'s barrier

    def value(
        params: PyTree, mutable: Any, batch: BatchLike, mask: jax.Array, rng: PRNGKey
    ) -> jax.Array:
        small = cast_floating(params, settings.precision.compute_dtype)
        divided, start = divide_frozen(small, settings.freeze), jnp.zeros((), jnp.float32)
        total = _sum_up(part, loss_sum, start, divided, mutable, (batch, mask), rng, settings)
        if (config := settings.regularization) is None:
            return mean_loss(total.terms)
        penalty = _penalty_fn(config, settings.freeze)(params)
        return mean_loss(_with_penalty(total.terms, penalty))

    return value


def mean_loss(terms: LossTerms) -> jax.Array:
    """Returns the mean of a batch from its sums, float32 ``()``; 0 where it has no weight."""
    return terms.value * _share(terms)


def _share(terms: LossTerms) -> jax.Array:
    weight = terms.weight
    return jnp.where(weight == 0, 0.0, 1.0 / jnp.where(weight == 0, 1.0, weight))


def _zeros_like(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), tree)


def _penalty_fn(
    config: RegularizationConfig, freeze: tuple[str, ...]
) -> Callable[[PyTree], jax.Array]:
    """Returns what regularization adds to the mean loss, of all parameters as they are kept."""
    of_trained = regularization_fn(config)
    return lambda params: of_trained(divide_frozen(params, freeze)[0])


def _with_penalty(terms: LossTerms, penalty: jax.Array) -> LossTerms:
    is_loss = jnp.arange(terms.sums.size) == 0  # the first metric is the loss
    return terms.replace(
        value=terms.value + penalty * terms.weight,
        sums=terms.sums + jnp.where(is_loss, penalty * terms.counts, 0.0),
    )


def _penalized(result: BatchGradient, params: PyTree, settings: StepSettings) -> BatchGradient:
    """Returns the gradient and the sums with what regularization adds to the mean loss."""
    if (config := settings.regularization) is None:
        return result
    wide = cast_floating(params, "float32")
    penalty, added = jax.value_and_grad(_penalty_fn(config, settings.freeze))(wide)
    # Without any weight there is no mean that it could be added to.
    empty = result.terms.weight == 0
    grads = jax.tree.map(lambda g, more: g + jnp.where(empty, 0.0, more), result.grads, added)
    return BatchGradient(grads, _with_penalty(result.terms, penalty), penalty)


def _sum_up(
    part: Callable[..., BatchGradient],
    loss_sum: Callable[..., Any],
    start: PyTree,
    params: tuple[PyTree, PyTree],
    mutable: Any,
    rows: Any,
    rng: PRNGKey,
    settings: StepSettings,
) -> BatchGradient:
    """Returns the sums of a batch over its micro-batches; ``start`` is 0, like its gradient."""
    count = settings.accumulate_steps
    if count == 1:
        return part(params, mutable, *rows, jax.random.fold_in(rng, 0))
    pieces = split_rows(rows, count, settings.layout)
    if not settings.accumulate_scan:
        return _loop(part, params, mutable, pieces, rng, count)
    first = jax.tree.map(lambda x: x[0], pieces)
    _, terms = jax.eval_shape(loss_sum, *params, mutable, *first, rng)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), terms)
    begin = BatchGradient(start, zeros.replace(mutable=dict(mutable)))
    return _scan(part, begin, params, pieces, rng, count)


def _make_micro_fn(
    loss_sum: Callable[..., tuple[jax.Array, LossTerms]], settings: StepSettings
) -> Callable[..., BatchGradient]:
    """Returns ``micro(params, mutable, batch, row_mask, rng, scale)``: of one micro-batch's sum."""

    def scaled_sum(trained: PyTree, scale: jax.Array, *args: Any) -> tuple[jax.Array, Any]:
        value, terms = loss_sum(trained, *args)
        factor = scale_of_sum(scale, terms.weight)
        return value * factor, (terms, factor)

    # By the trained parameters alone: no gradient of a frozen one is computed, summed or kept.
    differentiate = jax.grad(loss_sum, has_aux=True)
    differentiate_scaled = jax.grad(scaled_sum, has_aux=True)

    def micro(
        params: PyTree, mutable: Any, batch: Any, mask: Any, rng: PRNGKey, scale: Any
    ) -> BatchGradient:
        trained, frozen = params
        args = (frozen, mutable, batch, mask, rng)
        if scale is None:
            grads, terms = differentiate(trained, *args)
            grads = cast_floating(grads, "float32")
        else:
            grads, (terms, factor) = differentiate_scaled(trained, scale, *args)
            grads = unscaled(cast_floating(grads, "float32"), factor)
        if settings.param_shardings is not None:
            shardings, _ = divide_frozen(settings.param_shardings, settings.freeze)
            grads = jax.lax.with_sharding_constraint(grads, shardings)
        return BatchGradient(grads, terms)

    return micro


def split_rows(tree: PyTree, count: int, layout: BatchLayout | None) -> PyTree:
    """Returns the tree with rows ``(B, ...)`` as micro-batches ``(count, B // count, ...)``.

    Micro-batch ``i`` holds the rows ``i, i + count, ...``, so that each stays spread over all
    devices and no row changes its device.

    Raises:
        BatchError: If ``count`` does not divide the rows.
    """
    rows = jax.tree.leaves(tree)[0].shape[0]
    if rows % count:
        raise BatchError(
            f"A batch of {rows} rows does not divide into gradient_accumulate_steps={count} "
            "micro-batches of one size. Change the batch size or the number of steps."
        )

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(rows // count, count, *x.shape[1:]).swapaxes(0, 1)
        if layout is None or not layout.divides(rows // count):
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, layout.split_spec()))

    return jax.tree.map(split, tree)


def divide_frozen(tree: PyTree, freeze: tuple[str, ...]) -> tuple[PyTree, PyTree]:
    """Returns the trained and the frozen leaves, each with None where the other has a leaf."""
    frozen = path_mask(freeze, None)(tree)
    return (
        jax.tree.map(lambda still, x: None if still else x, frozen, tree),
        jax.tree.map(lambda still, x: x if still else None, frozen, tree),
    )


def join_frozen(first: PyTree, second: PyTree) -> PyTree:
    """Returns the tree that :func:`divide_frozen` has divided."""
    is_leaf = lambda x: x is None  # noqa: E731
    return jax.tree.map(lambda x, y: y if x is None else x, first, second, is_leaf=is_leaf)


def _add(total: BatchGradient, part: BatchGradient) -> BatchGradient:
    a, b = total.terms, part.terms
    terms = b.replace(
        value=a.value + b.value,
        weight=a.weight + b.weight,
        sums=a.sums + b.sums,
        counts=a.counts + b.counts,
    )
    return BatchGradient(jax.tree.map(jnp.add, total.grads, part.grads), terms)


def _loop(
    micro: Callable, params: PyTree, mutable: Any, pieces: Any, rng: PRNGKey, count: int
) -> BatchGradient:
    parts = []
    for index in range(count):
        batch, mask = jax.tree.map(lambda x, i=index: x[i], pieces)
        parts.append(micro(params, mutable, batch, mask, jax.random.fold_in(rng, index)))
        mutable = parts[-1].terms.mutable
    return functools.reduce(_add, parts)


def _scan(
    micro: Callable,
    start: BatchGradient,
    params: tuple[PyTree, PyTree],
    pieces: Any,
    rng: PRNGKey,
    count: int,
) -> BatchGradient:
    def body(total: BatchGradient, xs: Any) -> tuple[BatchGradient, None]:
        index, (batch, mask) = xs
        # Tied to the sums of the loop: otherwise XLA gathers the parameters of all layers before it
        # and keeps them through it, which under FSDP is one more whole model on each device.
        held, sums = jax.lax.optimization_barrier((params, total.grads))
        key = jax.random.fold_in(rng, index)
        part = micro(held, total.terms.mutable, batch, mask, key)
        return _add(total.replace(grads=sums), part), None

    total, _ = jax.lax.scan(body, start, (jnp.arange(count), pieces))
    return total
