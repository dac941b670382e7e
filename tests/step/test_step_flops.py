"""Are floating-point operations counted as the formulas say, and in loops as often as they run?"""

from typing import Any

import byte_lm
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec
from lm.model import Transformer
from step_zoo import Net, example_loss, make_data, make_state

import xtrainer as xt
from xtrainer.step import count_flops


def spec(*shape: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


X, W = spec(8, 16), spec(16, 16)
PRODUCT = 2 * 8 * 16 * 16


def by_xla(function: Any, *args: Any) -> float:
    """Returns what XLA counts; right for functions without loops."""
    return jax.jit(function).lower(*args).cost_analysis()["flops"]


def test_a_product_of_matrices_is_two_operations_for_each_multiplication() -> None:
    assert count_flops(jnp.matmul, spec(3, 5), spec(5, 7)) == 2 * 3 * 5 * 7
    assert count_flops(lambda x, w: jnp.einsum("bij,bjk->bik", x, w), spec(4, 3, 5), spec(4, 5, 7))
    heads = lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q, k)  # noqa: E731
    assert count_flops(heads, spec(2, 6, 3, 8), spec(2, 6, 3, 8)) == 2 * 2 * 3 * 6 * 6 * 8
    assert count_flops(jnp.matmul, spec(3, 5, dtype=np.complex64), spec(5, 7)) == 4 * 2 * 3 * 5 * 7


def test_dense_layers_and_their_gradient() -> None:
    rows, width = 4096, (64, 256, 10)  # elementwise work is small beside that of the products

    class Layers(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(width[2])(nn.relu(nn.Dense(width[1])(x)))

    params = jax.eval_shape(Layers().init, jax.random.key(0), spec(1, width[0]))
    forward = 2 * rows * (width[0] * width[1] + width[1] * width[2])
    # No gradient of the input is asked for: the first layer has two products, not three.
    both = 2 * forward + 2 * rows * width[1] * width[2]
    loss = lambda p, x: (Layers().apply(p, x) ** 2).sum()  # noqa: E731
    assert count_flops(Layers().apply, params, spec(rows, width[0])) == pytest.approx(forward, 0.02)
    found = count_flops(jax.grad(loss), params, spec(rows, width[0]))
    assert found == pytest.approx(both, 0.02)


@pytest.mark.parametrize(
    ("function", "args", "expected"),
    [
        (lambda x: x + x, (X,), 128),
        (lambda x: jnp.exp(x) * x, (X,), 256),
        (lambda x: x.sum(), (X,), 128),
        (jnp.cumsum, (X,), 128),
        (lambda x: (x.T.reshape(-1) > 0, x.astype(jnp.bfloat16)), (X,), 0),
        (lambda x: jnp.where(x > 0, x, 0.0), (X,), 0),
        (lambda x: x * 3 + x @ x.T, (spec(4, 4, dtype=np.int32),), 0),
        (lambda x: x.at[0].add(1.0), (X,), 16),
        (lambda x: nn.avg_pool(x, (2, 2), (2, 2)), (spec(2, 8, 8, 3),), 2 * 4 * 4 * 3 * 5),
        (lambda x: jax.lax.reduce(x, 0.0, lambda a, b: a + b * 2, (0,)), (X,), 2 * 128),
        (jnp.linalg.norm, (X,), 2 * 128 + 1),
    ],
)
def test_other_operations(function: Any, args: Any, expected: int) -> None:
    assert count_flops(function, *args) == expected


@pytest.mark.parametrize(
    ("strides", "groups", "dilation"), [(1, 1, 1), (2, 1, 1), (2, 2, 1), (1, 1, 2), (3, 4, 2)]
)
def test_a_convolution_and_its_gradient_are_what_xla_counts(
    strides: int, groups: int, dilation: int
) -> None:
    def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, w, (strides, strides), "SAME", rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        )  # fmt: skip

    args = spec(2, 9, 8, 8), spec(3, 3, 8 // groups, 12)
    gradient = jax.grad(lambda x, w: convolve(x, w).sum(), argnums=(0, 1))
    assert count_flops(convolve, *args) == by_xla(convolve, *args)
    assert count_flops(gradient, *args) == 2 * count_flops(convolve, *args)
    assert by_xla(gradient, *args) == count_flops(gradient, *args)


def repeated(length: int) -> Any:
    return lambda x, w: jax.lax.scan(lambda c, _: (c @ w, None), x, length=length)[0]


def test_a_scan_counts_as_often_as_it_runs() -> None:
    assert [count_flops(repeated(n), X, W) for n in (1, 8)] == [PRODUCT, 8 * PRODUCT]
    assert by_xla(repeated(8), X, W) < 2 * PRODUCT  # the reason for a count of our own


def test_scans_within_scans_multiply() -> None:
    def nested(x: jax.Array, w: jax.Array) -> jax.Array:
        inner = jax.jit(repeated(3))
        return jax.lax.scan(lambda c, _: (inner(c, w) @ w, None), x, length=5)[0]

    assert count_flops(nested, X, W) == 5 * (3 + 1) * PRODUCT


def test_the_gradient_of_a_scan_counts_as_often() -> None:
    loss = lambda n: lambda x, w: repeated(n)(x, w).sum()  # noqa: E731
    counts = [count_flops(jax.grad(loss(n), 1), X, W) for n in (2, 4, 8)]
    assert counts[2] - counts[1] == 2 * (counts[1] - counts[0])
    assert counts[2] == pytest.approx(8 * 3 * PRODUCT, 0.05)


def test_a_loop_of_known_length_is_a_scan_and_another_counts_once() -> None:
    body = lambda w: lambda _, c: c @ w  # noqa: E731
    known = lambda x, w: jax.lax.fori_loop(0, 8, body(w), x)  # noqa: E731
    unknown = lambda x, w, n: jax.lax.fori_loop(0, n, body(w), x)  # noqa: E731
    assert count_flops(known, X, W) == 8 * PRODUCT
    assert count_flops(unknown, X, W, spec(dtype=np.int32)) == PRODUCT


def test_of_a_condition_the_dearest_branch_counts() -> None:
    def choose(x: jax.Array, w: jax.Array, index: jax.Array) -> jax.Array:
        return jax.lax.switch(index, [lambda: x, lambda: x @ w, lambda: x @ w @ w])

    assert count_flops(choose, X, W, spec(dtype=np.int32)) == 2 * PRODUCT


def test_functions_with_a_gradient_of_their_own_count_once() -> None:
    @jax.custom_vjp
    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))
    assert count_flops(product, X, W) == PRODUCT
    gradient = jax.grad(lambda x, w: (product(x, w) ** 2).sum(), (0, 1))
    assert count_flops(gradient, X, W) == pytest.approx(3 * PRODUCT, 0.1)
    assert count_flops(jax.nn.silu, X) == 2 * 128


def test_what_nobody_reads_is_free() -> None:
    assert count_flops(lambda x, w: (x @ w, x + 1)[1], X, W) == 128


def test_what_is_computed_again_counts_again() -> None:
    def loss(layers: Any, x: jax.Array) -> jax.Array:
        for w in layers:
            x = jnp.tanh(x @ w)
        return (x**2).sum()

    layers = [spec(64, 64)] * 4
    product = 2 * 32 * 64 * 64
    plain = count_flops(jax.value_and_grad(loss), layers, spec(32, 64))
    again = count_flops(jax.value_and_grad(jax.checkpoint(loss)), layers, spec(32, 64))
    assert plain == pytest.approx(11 * product, 0.02)  # no gradient of the input
    assert again == pytest.approx(15 * product, 0.02)


def test_what_every_device_does_counts_for_each() -> None:
    mesh = xt.build_mesh(xt.ParallelConfig())
    local = lambda x, w: x @ w  # noqa: E731
    spread = jax.shard_map(
        local, mesh=mesh, in_specs=(PartitionSpec("dp"), PartitionSpec()),
        out_specs=PartitionSpec("dp"),
    )  # fmt: skip
    assert count_flops(spread, X, W) == PRODUCT
    whole = jax.shard_map(
        local, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec()), out_specs=PartitionSpec()
    )
    assert count_flops(whole, X, W) == 8 * PRODUCT


@pytest.mark.parametrize(("estimate", "expected"), [(None, 3 * 2 * 4 * 4 * 4), (7, 7)])
def test_a_pallas_kernel_counts_by_its_grid_or_its_estimate(estimate: Any, expected: int) -> None:
    def kernel(x: Any, out: Any) -> None:
        out[...] = x[...] @ x[...]

    cost = estimate and pl.CostEstimate(flops=estimate, transcendentals=0, bytes_accessed=0)
    call = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((12, 4), np.float32),
        grid=(3,),
        in_specs=[pl.BlockSpec((4, 4), lambda i: (0, 0))],
        out_specs=pl.BlockSpec((4, 4), lambda i: (i, 0)),
        cost_estimate=cost,
    )
    assert count_flops(call, spec(4, 4)) == expected


def test_rows_of_a_ragged_product_meet_one_matrix_each() -> None:
    groups = spec(3, dtype=np.int32)
    args = spec(6, 4), spec(3, 4, 5), groups
    assert count_flops(jax.lax.ragged_dot, *args) == 2 * 6 * 4 * 5
    loss = lambda x, w, g: (jax.lax.ragged_dot(x, w, g) ** 2).sum()  # noqa: E731
    gradient = count_flops(jax.grad(loss, (0, 1)), *args)
    assert gradient == pytest.approx(3 * 2 * 6 * 4 * 5, 0.25)


def language_model(rows: int, length: int, dim: int, layers: int) -> tuple[Any, Any, float]:
    """Returns a step from its number of micro-batches, its arguments, and the formula."""
    model = Transformer(
        context_length=length, num_layers=layers, embed_dim=dim, num_heads=4, mlp_dim=4 * dim
    )
    optimizer = optax.adamw(1e-3)

    def create() -> xt.TrainState:
        key = jax.random.key(0)
        params = model.init(key, jnp.zeros((1, length), jnp.uint8))["params"]
        return xt.TrainState.create(params, optimizer, key)

    def loss(params: Any, apply_fn: Any, batch: Any, rng: Any, train: bool = True) -> Any:
        return byte_lm.ByteLM.loss_function(None, params, apply_fn, batch, rng, train)  # type: ignore[arg-type]

    def step(pieces: int) -> Any:
        return xt.make_train_step(
            loss, model.apply, optimizer, xt.StepSettings(accumulate_steps=pieces)
        )

    state = jax.eval_shape(create)
    dtypes = {"inputs": np.uint8, "targets": np.uint8, "mask": np.float32}
    batch = {name: spec(rows, length, dtype=dtype) for name, dtype in dtypes.items()}
    matrices = (
        sum(x.size for x in jax.tree.leaves(state.params)) - 256 * dim
    )  # a table is looked up
    tokens = rows * length
    return step, (state, batch), 6 * matrices * tokens + 12 * layers * length * dim * tokens


@pytest.mark.parametrize("shape", [(8, 64, 128, 2), (8, 256, 256, 4)])
def test_a_transformer_is_six_operations_a_parameter_and_token_and_its_attention(
    shape: tuple[int, int, int, int],
) -> None:
    step, args, formula = language_model(*shape)
    found = count_flops(step(1), *args)
    print(f"{found:.4g} operations, {found / formula:.3f} of the formula")
    assert found == pytest.approx(formula, 0.05)
    assert found == pytest.approx(by_xla(step(1), *args), 0.01)


def test_accumulation_does_the_work_of_the_whole_batch() -> None:
    step, args, _ = language_model(32, 64, 128, 2)
    one, eight = (count_flops(step(pieces), *args) for pieces in (1, 8))
    print(f"eight micro-batches: {eight / one:.4f} of one")
    assert eight == pytest.approx(one, 0.02)
    assert by_xla(step(8), *args) < one / 4


def test_arrays_and_their_shapes_count_alike() -> None:
    step = xt.make_train_step(example_loss, Net().apply, optax.sgd(0.1))
    args = make_state(), make_data(16)
    shapes = jax.eval_shape(lambda x: x, args)
    assert count_flops(step, *args) == count_flops(step, *shapes) > 0
