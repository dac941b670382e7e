from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtrainer.step.diagnose import Finding, find_nonfinite

THREE = jnp.array([1.0, 0.0, 2.0])


def found(function: Callable[..., Any], *args: Any) -> Finding:
    finding = find_nonfinite(function, {f"arg{i}": arg for i, arg in enumerate(args)})
    assert finding is not None
    return finding


def operation(finding: Finding) -> tuple[str, tuple[tuple[int, int | None], ...], int, int]:
    place = finding.place
    assert place is not None and not finding.argument
    return place.primitive, place.iterations, place.nans, place.infs


def test_a_finite_result_has_no_finding() -> None:
    assert find_nonfinite(lambda x: jnp.exp(x), {"x": THREE}) is None
    assert find_nonfinite(lambda x: x + 1, {"x": jnp.arange(3)}) is None


def test_the_first_operation_is_named_with_its_output_and_line() -> None:
    def function(x: jax.Array) -> jax.Array:
        y = x * 2
        y = jnp.sqrt(y - 3)  # this line
        return (y + 1).sum()

    finding = found(function, THREE.astype(jnp.bfloat16))
    line = function.__code__.co_firstlineno + 2
    assert operation(finding) == ("sqrt", (), 2, 0)
    assert str(finding) == (
        f"in no module, primitive sqrt, output (3,) bfloat16: 2 NaN ({__file_name__}:{line})"
    )


__file_name__ = __file__.rsplit("/", 1)[-1]


def jitted(x: jax.Array) -> jax.Array:
    return jax.jit(lambda x: jnp.log(x - 1))(x)


def custom_jvp(x: jax.Array) -> jax.Array:
    f = jax.custom_jvp(lambda x: jnp.log(x - 1))
    f.defjvp(lambda p, t: (f(*p), t[0]))
    return f(x)


def custom_vjp(x: jax.Array) -> jax.Array:
    f = jax.custom_vjp(lambda x: jnp.log(x - 1))
    f.defvjp(lambda x: (f(x), None), lambda _, g: (g,))
    return f(x)


def remat(x: jax.Array) -> jax.Array:
    return jax.checkpoint(lambda x: jnp.log(x - 1))(x)


def cond(x: jax.Array) -> jax.Array:
    return jax.lax.cond(x[0] > 0, lambda x: jnp.log(x - 1), lambda x: x, x)


def nested(x: jax.Array) -> jax.Array:
    return jax.jit(lambda x: jax.checkpoint(jitted)(x))(x)


@pytest.mark.parametrize("function", [jitted, custom_jvp, custom_vjp, remat, cond, nested])
def test_a_function_within_is_looked_into(function: Callable[..., Any]) -> None:
    # -inf and NaN in the logarithms of 0, -1 and 1: the NaN is what counts.
    assert operation(found(lambda x: function(x) * 2, THREE)) == ("log", (), 1, 1)


def test_an_iteration_of_a_scan_is_named() -> None:
    def body(carry: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return carry + jnp.log(x), jnp.exp(x)

    xs = jnp.array([3.0, 2.0, -1.0, 1.0, -2.0])
    scan = lambda xs: jax.lax.scan(body, 0.0, xs)  # noqa: E731
    assert operation(found(scan, xs)) == ("log", ((2, 5),), 1, 0)
    back = lambda xs: jax.lax.scan(body, 0.0, xs, reverse=True)  # noqa: E731
    assert operation(found(back, xs)) == ("log", ((4, 5),), 1, 0)
    both = lambda xs: jax.lax.scan(lambda c, x: (c, scan(x)), 0, xs)[1]  # noqa: E731
    assert operation(found(both, jnp.stack([jnp.ones(5), xs]))) == ("log", ((1, 2), (2, 5)), 1, 0)


def test_an_iteration_of_a_while_loop_is_named() -> None:
    def loop(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, jnp.log(s[1])), (0, x))[
            1
        ]

    # 20 -> 3.0 -> 1.1 -> 0.09 -> -2.4 -> NaN
    assert operation(found(loop, 20.0)) == ("log", ((4, None),), 1, 0)


def test_a_nan_that_is_thrown_away_is_not_named() -> None:
    def function(x: jax.Array) -> jax.Array:
        safe = jnp.where(x > 0, jnp.log(x - 1), 0.0)  # NaN at 0, not selected; -inf at 1
        return jnp.arcsin(jnp.where(jnp.isfinite(safe), x, 0.0)).sum()

    assert operation(found(function, THREE)) == ("asin", (), 1, 0)


@pytest.mark.parametrize("masking", ["where", "add", "literal argument"])
def test_infinities_of_a_mask_are_meant(masking: str) -> None:
    mask = np.array([[True, False, True], [False, False, False]])

    def attend(x: jax.Array, value: jax.Array) -> jax.Array:
        if masking == "where":
            x = jnp.where(mask, x, -jnp.inf)
        elif masking == "add":
            x = x + jnp.where(mask, 0.0, -jnp.inf)
        else:
            x = x + np.where(mask, 0.0, -np.inf).astype(np.float32)
        return jax.nn.softmax(x) @ value

    ones = jnp.ones((2, 3))
    # The second row has nothing to attend to: its softmax is the culprit, and no mask is.
    assert operation(found(attend, ones, jnp.ones(3)))[0] == "sub"
    # With a real overflow the mask is no reason to look away from it.
    over = lambda x, v: attend(jnp.exp(x), v)  # noqa: E731
    assert operation(found(over, ones.at[0, 0].set(200.0), jnp.ones(3))) == ("exp", (), 0, 1)
    good = lambda x, v: attend(x, v)[0]  # noqa: E731
    assert find_nonfinite(good, {"x": ones, "v": jnp.ones(3)}) is None


def test_an_overflow_is_the_cause_of_a_nan_that_it_becomes() -> None:
    finding = found(lambda x: jax.jit(lambda y: y - y)(jnp.exp(x * 100)), THREE)
    assert operation(finding) == ("exp", (), 0, 2)
    assert finding.turned is not None and finding.turned.primitive == "sub"
    assert "primitive exp, output (3,) float32: 2 Inf" in str(finding)
    assert "; NaN appears in no module, primitive sub, output (3,) float32: 2 NaN" in str(finding)


def test_an_infinite_result_without_a_nan_is_followed_back_to_its_division() -> None:
    function = lambda x: jax.jit(lambda x: 1 / x)(x).sum() + 1  # noqa: E731
    assert operation(found(function, THREE)) == ("div", (), 0, 1)


def test_an_overflow_among_masked_entries_is_found() -> None:
    def function(x: jax.Array) -> jax.Array:
        masked = jnp.where(np.array([True, True, False]), x, -jnp.inf)
        return jnp.exp(masked * 100).sum()  # exp(-inf) is 0, exp(100) is Inf

    assert operation(found(function, THREE)) == ("exp", (), 0, 1)


def test_an_overflow_in_a_loop_that_begins_at_minus_infinity() -> None:
    def largest(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda m, x: (jnp.maximum(m, 1 / x), None), -jnp.inf, x)[0]

    assert operation(found(largest, THREE)) == ("div", ((1, 3),), 0, 1)


@pytest.mark.parametrize("value", [jnp.nan, -jnp.inf])
def test_a_constant_result_is_told_as_constant(value: float) -> None:
    finding = found(lambda x: jnp.where(x > 0, x, value).sum(), THREE)
    assert finding.constant
    assert finding.place is not None and finding.place.primitive != "reduce_sum"
    assert found(lambda x: jnp.float32(value), THREE) == Finding(constant=True)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_an_argument_is_named_with_its_entry(value: float) -> None:
    tree = {"layer": {"kernel": jnp.ones((4, 3)).at[2, 1].set(value)}, "other": THREE}
    function = lambda p, x: (p["layer"]["kernel"] @ x + p["other"].sum()).sum()  # noqa: E731
    finding = find_nonfinite(function, {"params": tree, "batch": jnp.ones(3)})
    assert finding == Finding(argument="params/layer/kernel", entry=(2, 1))
    assert str(finding) == "in what the step is given: params/layer/kernel, first at [2, 1]"
    assert find_nonfinite(lambda p, x: p["other"] @ x, {"p": tree, "x": jnp.ones(3)}) is None


def test_an_infinite_argument_is_the_cause_of_its_nan() -> None:
    finding = found(lambda x: jax.nn.softmax(x), THREE.at[1].set(jnp.inf))
    assert (finding.argument, finding.entry) == ("arg0", (1,))
    assert finding.turned is not None and finding.turned.primitive == "sub"


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array) -> tuple[jax.Array, None]:
        x = nn.Dense(3, name="dense")(x)
        return jnp.sqrt(jnp.exp(x) * scale), None


class Stack(nn.Module):
    layers: int = 3
    remat: bool = False
    scanned: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, scales: jax.Array) -> jax.Array:
        layer: Any = nn.remat(Layer) if self.remat else Layer
        if self.scanned:
            layer = nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True})
            return layer(name="layers")(x, scales)[0]
        for index in range(self.layers):
            x, _ = layer(name=f"layer_{index}")(x, scales[index])
        return x


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("bad", [0, 2])
def test_a_layer_is_named_in_both_passes(scanned: bool, remat: bool, bad: int) -> None:
    model = Stack(scanned=scanned, remat=remat)
    x, scales = jnp.ones((2, 3)), jnp.ones(3)
    params = jax.jit(model.init)(jax.random.key(0), x, scales)["params"]
    loss = lambda p, s: model.apply({"params": p}, x, s).sum()  # noqa: E731
    name = "Stack/layers" if scanned else f"Stack/layer_{bad}"
    iterations = ((bad, 3),) if scanned else ()

    finding = find_nonfinite(loss, {"params": params, "scales": scales.at[bad].set(-1.0)})
    assert finding is not None and finding.place is not None
    place = finding.place
    assert (place.module, place.primitive, place.backward) == (name, "sqrt", False)
    assert place.iterations == iterations

    # What the forward pass does not compute: the derivative of the square root of 0.
    zero = scales.at[bad].set(0.0)
    assert find_nonfinite(loss, {"params": params, "scales": zero}) is None
    finding = find_nonfinite(jax.grad(loss), {"params": params, "scales": zero})
    assert finding is not None and finding.place is not None
    assert (finding.place.module, finding.place.iterations) == (name, iterations)
    assert finding.place.primitive == "div", finding


def test_a_nan_of_the_backward_pass_alone() -> None:
    @jax.custom_vjp
    def pass_on(x: jax.Array) -> jax.Array:
        return x

    def backward(_: None, g: jax.Array) -> tuple[jax.Array]:
        return (jnp.log(g - 2),)

    pass_on.defvjp(lambda x: (x, None), backward)

    class Bad(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return pass_on(nn.Dense(2)(x))

    params = Bad().init(jax.random.key(0), THREE)
    loss = lambda params: Bad().apply(params, THREE).sum()  # noqa: E731
    assert find_nonfinite(loss, {"params": params}) is None
    place = found(jax.grad(loss), params).place
    assert place is not None
    assert (place.primitive, place.module, place.backward) == ("log", "Bad", True)
