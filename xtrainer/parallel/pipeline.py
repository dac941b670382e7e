"""How does a stack of equal blocks spread over the stages of a pipeline?

Each stage holds the parameters of some successive layers. The rows of a batch go through in
micro-batches: in every tick each stage works on another micro-batch and hands it on.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from xtrainer.errors import BatchError, ConfigError
from xtrainer.launch import is_main_process
from xtrainer.parallel.activations import part_of_batch
from xtrainer.parallel.annotations import box_layers, unbox
from xtrainer.parallel.placement import BatchLayout
from xtrainer.types import PRNGKey, PyTree

_LOG = logging.getLogger(__name__)

_LAYOUT = jax.make_user_context(None)
"""The ``BatchLayout`` of the step being traced; a part of the keys of JAX's caches of traces."""

Block: TypeAlias = Callable[[PyTree, PyTree, PyTree], PyTree]
"""``(parameters of one layer, x, rngs) -> x``."""


@contextmanager
def stages_of(layout: BatchLayout | None) -> Iterator[None]:
    """Makes the pipelines that a model runs inside divide over the stages of a mesh.

    Args:
        layout: The mesh, its batch axes and its pipeline axis; None: nothing is divided.
    """
    with _LAYOUT(layout):
        yield


def bubble_fraction(num_stages: int, num_microbatches: int) -> float:
    """Returns the part of the time in which a stage waits for its first or after its last work.

    Huang et al., GPipe, 2019 (https://arxiv.org/abs/1811.06965), section 2.3.

    Example:
        >>> bubble_fraction(4, 4), bubble_fraction(4, 12), bubble_fraction(1, 8)
        (0.42857142857142855, 0.2, 0.0)
    """
    return (num_stages - 1) / (num_microbatches + num_stages - 1)


def pipeline(
    block_fn: Block,
    stacked_params: PyTree,
    x: PyTree,
    *,
    num_microbatches: int,
    rngs: PyTree = None,
) -> PyTree:
    """Returns ``x`` after all layers of a stack, one after the other.

    On a mesh with a pipeline axis each stage holds ``layers / stages`` successive layers and all
    stages work at the same time; elsewhere it is a scan over the layers. Outputs and gradients are
    the same. The mesh is that of the step that calls the model (see :func:`stages_of`).

    Random numbers: layer ``l`` gets, for micro-batch ``m``, ``fold_in(fold_in(key, l), m)``. They
    do not depend on the mesh or the number of stages, but on ``num_microbatches``, which belongs to
    the model. (With JAX's default keys: those of the kinds ``rbg`` and ``unsafe_rbg`` depend on how
    calls are batched.) Micro-batch ``m`` holds the rows ``m, m + num_microbatches, ...``.

    The stages are a mapped axis that is spread over the devices, and what they hand on a roll along
    it, as in GSPMD (Xu et al., 2021, https://arxiv.org/abs/2105.04663, section 3.3). The schedule
    is that of GPipe (Huang et al., 2019, https://arxiv.org/abs/1811.06965).

    Args:
        block_fn: ``(params, x, rngs) -> x`` of one layer; what it returns has the shapes and
            dtypes of what it got, and row ``i`` depends on row ``i`` alone.
        stacked_params: Parameters of all layers, stacked along a new first axis.
        x: Array or tree of arrays whose first axis is the batch.
        num_microbatches: Divides the rows; the more, the smaller :func:`bubble_fraction`. The rows
            of one should still divide over the devices that share the batch.
        rngs: A key, or a tree of keys; None: the block gets None.

    Raises:
        ConfigError: If the layers do not divide into the stages, or the block changes shapes.
        BatchError: If the rows do not divide into the micro-batches.

    Example:
        >>> layers = {"w": jnp.array([2.0, 3.0])}
        >>> block = lambda params, x, rngs: x * params["w"]
        >>> pipeline(block, layers, jnp.ones((4, 1)), num_microbatches=2).tolist()
        [[6.0], [6.0], [6.0], [6.0]]
    """
    layout: BatchLayout | None = _LAYOUT.value
    num_layers = _num_layers(stacked_params)
    pieces = _split(x, num_microbatches, layout)
    rows = jax.tree.leaves(pieces)[0].shape[1]

    def layer(params: PyTree, x: PyTree, index: jax.Array, piece: jax.Array) -> PyTree:
        keys = jax.tree.map(lambda k: jax.random.fold_in(jax.random.fold_in(k, index), piece), rngs)
        with part_of_batch(rows):
            return block_fn(params, x, keys)

    _check_block(layer, stacked_params, pieces)
    if layout is None or layout.num_stages == 1:
        pieces = _unsplit(layer, stacked_params, pieces)
    else:
        _check_stages(num_layers, layout)
        _report(layout.num_stages, num_microbatches)
        pieces = _staged(layer, stacked_params, pieces, layout)
    return jax.tree.map(lambda y, x: y.swapaxes(0, 1).reshape(x.shape), pieces, x)


class PipelinedStack(nn.Module):
    """A stack of equal Linen blocks that :func:`pipeline` runs, in place of ``nn.scan``.

    The parameters ``layers/...`` are those of a block with a new first axis, which lies over the
    pipeline's stages by itself; the other axes follow the block's metadata, the rules and the
    default as anywhere else. Updated collections (batch statistics) cannot be carried from block to
    block, and what a block sows is dropped.

    Attributes:
        block_factory: Makes a block; called without arguments. The block is called with ``x``.
        num_layers: How many blocks; the stages must divide it.
        num_microbatches: See :func:`pipeline`.
        rng_names: The random numbers that a block draws, besides those of its parameters.

    Example:
        >>> class Block(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x):
        ...         return x + nn.Dense(x.shape[-1])(nn.tanh(x))
        >>> stack = PipelinedStack(Block, num_layers=4, num_microbatches=2)
        >>> variables = unbox(stack.init(jax.random.key(0), jnp.ones((8, 3))))
        >>> variables["params"]["layers"]["Dense_0"]["kernel"].shape
        (4, 3, 3)
        >>> stack.apply(variables, jnp.ones((8, 3))).shape
        (8, 3)
    """

    block_factory: Callable[[], nn.Module]
    num_layers: int
    num_microbatches: int
    rng_names: tuple[str, ...] = ("dropout",)

    @nn.compact
    def __call__(self, x: PyTree, **kwargs: Any) -> PyTree:
        """Returns ``x`` after all blocks.

        Args:
            x: Array or tree of arrays whose first axis is the batch.
            **kwargs: Given to every block as they are: ``train=True``.

        Raises:
            ConfigError: For what :func:`pipeline` and a block of this kind cannot do.
            BatchError: If the rows do not divide into the micro-batches.
        """
        block = self.block_factory().clone(parent=None)
        if self.has_variable("params", "layers"):
            params = unbox(self.get_variable("params", "layers"))
        else:
            params = self.param("layers", self._init_layers, block, x, kwargs)

        def run(params: PyTree, x: PyTree, rngs: dict[str, PRNGKey]) -> PyTree:
            return block.apply({"params": params}, x, rngs=rngs, **kwargs)

        rngs = {name: self.make_rng(name) for name in self.rng_names if self.has_rng(name)}
        # A model may be initialized with a single row.
        count = 1 if self.is_initializing() else self.num_microbatches
        return pipeline(run, params, x, num_microbatches=count, rngs=rngs)

    def _init_layers(self, rng: PRNGKey, block: nn.Module, x: PyTree, kwargs: Any) -> PyTree:
        names = ("params", *self.rng_names)

        def init_one(rng: PRNGKey) -> PyTree:
            keys = dict(zip(names, jax.random.split(rng, len(names)), strict=True))
            variables = dict(block.init(keys, x, **kwargs))
            others = sorted(set(variables) - {"params", "intermediates"})
            if others:
                raise ConfigError(
                    f"PipelinedStack: {type(block).__name__} has the collections {others}, "
                    "expected 'params' alone: stages carry nothing from batch to batch. Use layers "
                    "without them (LayerNorm for BatchNorm)."
                )
            return variables.get("params", {})

        return box_layers(jax.vmap(init_one)(jax.random.split(rng, self.num_layers)))


def _unsplit(layer: Callable[..., PyTree], params: PyTree, pieces: PyTree) -> PyTree:
    count = jax.tree.leaves(pieces)[0].shape[0]

    def one_layer(pieces: PyTree, xs: Any) -> tuple[PyTree, None]:
        # Mapped over the micro-batches, whose random numbers differ: the work is that of one batch.
        return jax.vmap(layer, (None, 0, None, 0))(xs[0], pieces, xs[1], jnp.arange(count)), None

    return jax.lax.scan(one_layer, pieces, (params, jnp.arange(_num_layers(params))))[0]


def _staged(
    layer: Callable[..., PyTree], params: PyTree, pieces: PyTree, layout: BatchLayout
) -> PyTree:
    stages, axis = layout.num_stages, layout.pipeline_axis
    depth = _num_layers(params) // stages
    count = jax.tree.leaves(pieces)[0].shape[0]
    params = jax.tree.map(lambda p: p.reshape(stages, depth, *p.shape[1:]), params)
    params = _constrain(params, layout, axis)
    # Whether the rows of a micro-batch still divide over the batch axes.
    divides = layout.divides(jax.tree.leaves(pieces)[0].shape[1])
    batch = layout.axes if layout.axes and divides else PartitionSpec.UNCONSTRAINED

    def stage(params: PyTree, x: PyTree, number: jax.Array, tick: jax.Array) -> PyTree:
        piece = tick - number
        # Before its first and after its last micro-batch a stage computes on what it finds.
        busy = (piece >= 0) & (piece < count)
        params, x = _differentiate_if(busy, (params, x))

        def one_layer(x: PyTree, xs: Any) -> tuple[PyTree, None]:
            return layer(xs[0], x, number * depth + xs[1], piece), None

        return jax.lax.scan(one_layer, x, (params, jnp.arange(depth)))[0]

    def step(buffer: PyTree, xs: Any) -> tuple[PyTree, PyTree]:
        new, tick = xs
        buffer = jax.tree.map(lambda b, n: jnp.roll(b, 1, axis=0).at[0].set(n), buffer, new)
        buffer = _constrain(buffer, layout, axis, batch)
        numbers = jnp.arange(stages)
        run = jax.vmap(stage, (0, 0, 0, None), spmd_axis_name=axis)
        buffer = _constrain(run(params, buffer, numbers, tick), layout, axis, batch)
        return buffer, buffer

    def padded(piece: jax.Array) -> jax.Array:
        return jnp.concatenate([piece, jnp.zeros((stages - 1, *piece.shape[1:]), piece.dtype)])

    empty = jax.tree.map(lambda p: jnp.zeros((stages, *p.shape[1:]), p.dtype), pieces)
    empty = _constrain(empty, layout, axis, batch)
    ticks = jnp.arange(count + stages - 1)
    _, results = jax.lax.scan(step, empty, (jax.tree.map(padded, pieces), ticks))
    results = _constrain(results, layout, None, axis, batch)
    results = jax.tree.map(lambda y: y[stages - 1 :, stages - 1], results)
    return _constrain(results, layout, None, batch)


@jax.custom_jvp
def _differentiate_if(busy: jax.Array, tree: PyTree) -> PyTree:
    # A block may well have no finite derivative at what an idle stage finds; 0 times that is NaN.
    # Selecting tangents, not values, leaves nothing to be kept for the backward pass.
    del busy
    return tree


@_differentiate_if.defjvp
def _tangent_if(primals: Any, tangents: Any) -> tuple[PyTree, PyTree]:
    busy, tree = primals

    def select(tangent: jax.Array) -> jax.Array:
        if tangent.dtype == jax.dtypes.float0:
            return tangent
        return jnp.where(busy, tangent, jnp.zeros((), tangent.dtype))

    return tree, jax.tree.map(select, tangents[1])


def _constrain(tree: PyTree, layout: BatchLayout, *spec: Any) -> PyTree:
    def constrain(x: jax.Array) -> jax.Array:
        free = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - len(spec))
        sharding = NamedSharding(layout.mesh, PartitionSpec(*spec, *free))
        return jax.lax.with_sharding_constraint(x, sharding)

    return jax.tree.map(constrain, tree)


def _split(x: PyTree, count: int, layout: BatchLayout | None) -> PyTree:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(x)]
    rows = {shape[:1] for shape in shapes}
    if len(rows) != 1 or () in rows:
        raise BatchError(
            f"pipeline: found x with the shapes {shapes}, expected arrays whose first axis is the "
            "batch. Give what is no part of the batch to the block by a closure."
        )
    number = rows.pop()[0]
    if count < 1 or number % count:
        raise BatchError(
            f"pipeline: a (micro-)batch of {number} rows does not divide into num_microbatches="
            f"{count} parts of one size. Choose a divisor of the batch size (with accumulation: of "
            "the rows of one of its micro-batches)."
        )
    # Every count-th row, so that no row changes its device.
    pieces = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), x)
    if layout is None or not layout.axes or not layout.divides(number // count):
        return pieces
    return _constrain(pieces, layout, None, layout.axes)


def _num_layers(params: PyTree) -> int:
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(params)}
    if len(lengths) != 1 or () in lengths:
        raise ConfigError(
            f"pipeline: found parameters whose first axes are {sorted(lengths)}, expected one "
            "number of layers. Stack the parameters of all layers along a new first axis."
        )
    return lengths.pop()[0]


def _check_stages(num_layers: int, layout: BatchLayout) -> None:
    if num_layers % layout.num_stages:
        raise ConfigError(
            f"parallel.pipeline_axis_size: found {layout.num_stages} stages for a stack of "
            f"{num_layers} layers, expected a divisor of {num_layers}."
        )


def _check_block(layer: Callable[..., PyTree], params: PyTree, pieces: PyTree) -> None:
    x = jax.eval_shape(lambda p: jax.tree.map(lambda leaf: leaf[0], p), pieces)
    first = jax.eval_shape(lambda p: jax.tree.map(lambda leaf: leaf[0], p), params)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    y = jax.eval_shape(layer, first, x, number, number)
    found, expected = (jax.tree.map(lambda s: f"{s.dtype}{list(s.shape)}", t) for t in (y, x))
    if found != expected:
        raise ConfigError(
            f"pipeline: the block returns {found} for {expected}, expected the same shapes and "
            "dtypes: the next block gets what it returns. Cast or project inside the block."
        )


@functools.cache  # said once, however often a model is traced
def _report(num_stages: int, num_microbatches: int) -> None:
    if is_main_process():
        _LOG.info(
            "Pipeline of %d stages, %d micro-batches: a stage waits for %.1f %% of the time.",
            num_stages,
            num_microbatches,
            100 * bubble_fraction(num_stages, num_microbatches),
        )
