"""Are chosen modules computed again, with the same numbers and less memory?"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxpr_zoo import primitives

from xtrainer.errors import ConfigError
from xtrainer.parallel import (
    BatchLayout,
    ModuleName,
    ParallelConfig,
    build_mesh,
    check_remat,
    constrain_module_outputs,
    record_modules,
    rematerialize,
)
from xtrainer.parallel.remat import REMAT_POLICIES, names_module

ROWS, WIDTH = 16, 4


class Block(nn.Module):
    """Everything a call may do: static arguments, dropout, statistics, sown values, a tuple."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, *, scale: float, mode: str = "tanh") -> Any:
        if not isinstance(train, bool):
            raise TypeError("train is traced")
        y = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x)) * scale
        y = nn.Dropout(0.5, deterministic=not train)(getattr(jnp, mode)(y))
        self.sow("intermediates", "mean", y.mean())
        return x + nn.Dense(WIDTH)(y), {"count": 3, "mode": mode, "none": None}


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for index in range(2):
            x, facts = Block(name=f"block_{index}")(x, train, scale=0.5)
            if facts != {"count": 3, "mode": "tanh", "none": None}:
                raise TypeError(f"found {facts}")
        return nn.Dense(1)(x)


class WithSetup(nn.Module):
    """Modules made in ``setup``; the first is called twice and shares its parameters."""

    def setup(self) -> None:
        self.blocks = [Block() for _ in range(2)]
        self.head = nn.Dense(1)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for block in (*self.blocks, self.blocks[0]):
            x, _ = block(x, train, scale=0.5)
        return self.head(x)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, None]:
        y = nn.Dropout(0.5, deterministic=not train)(nn.tanh(nn.Dense(32)(x)))
        self.sow("intermediates", "mean", y.mean())
        return x + nn.Dense(WIDTH)(y), None


class Scanned(nn.Module):
    length: int = 3

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        layers = nn.scan(
            Layer,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=self.length,
        )
        return nn.Dense(1)(layers(name="layers")(x, train)[0])


class Around(nn.Module):
    """Calls a module that it is given, with another one as an argument."""

    inner: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array, head: nn.Module) -> jax.Array:
        return head(self.inner(x, True)[0]) * self.param("gain", nn.initializers.ones, ())


class Handing(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        head = nn.Dense(1)
        return Around(Layer())(x, head) + head(x)


X = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)


def gradient(
    model: nn.Module, patterns: Any, layout: Any = None, policy: str = "nothing_saveable"
) -> tuple[Any, Any]:
    """Returns a function of the parameters for gradient, loss and updates, and the parameters."""
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = dict(model.init(keys, X))
    params = variables.pop("params")
    variables.pop("intermediates", None)

    def loss(params: Any) -> Any:
        with constrain_module_outputs(layout, ROWS), rematerialize(patterns, policy):
            outputs, updates = model.apply(
                {"params": params, **variables},
                X,
                train=True,
                rngs={"dropout": jax.random.key(2)},
                mutable=["batch_stats", "intermediates"],
            )
        return (outputs**2).mean(), updates

    return jax.value_and_grad(loss, has_aux=True), params


def num_checkpoints(function: Any, params: Any) -> int:
    """Returns how often the jaxpr of a gradient computes something again."""
    return sum(path[-1] == "remat2" for path in primitives(jax.make_jaxpr(function)(params)))


def num_products(function: Any, params: Any) -> int:
    """Returns how many products of matrices the jaxpr of a gradient has."""
    return sum(path[-1] == "dot_general" for path in primitives(jax.make_jaxpr(function)(params)))


@pytest.mark.parametrize(
    ("model", "patterns", "count"),
    [
        (Stack(), ["Block"], 2),
        (Stack(), ["Stack", "Dense"], 6),
        (WithSetup(), ["Block"], 3),
        (Scanned(), ["Layer"], 1),
        (Handing(), ["Around", "Layer"], 2),
    ],
)
def test_the_modules_named_are_computed_again_with_the_same_numbers(
    model: nn.Module, patterns: list[str], count: int
) -> None:
    plain, params = gradient(model, ())
    again, _ = gradient(model, patterns)
    assert num_checkpoints(plain, params) == 0
    # A nested module is counted in the forward and in the recomputed part.
    assert num_checkpoints(again, params) >= count
    expected, found = jax.jit(plain)(params), jax.jit(again)(params)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        # Terms of size 1 cancel to nothing in some gradients; what is left is their rounding.
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=5e-7)


@pytest.mark.parametrize(
    ("patterns", "count"),
    [
        (["block_1"], 1),
        (["block_[01]"], 2),
        (["re:block_[1-9]"], 1),
        (["block_0/Dense_*"], 2),
        (["block_1/Block"], 0),
    ],
)
def test_other_modules_are_not_computed_again(patterns: list[str], count: int) -> None:
    assert num_checkpoints(*gradient(Stack(), patterns)) == count


def test_a_path_of_scanned_layers_names_one_layer() -> None:
    paths = primitives(
        jax.make_jaxpr(gradient(Scanned(), ["layers"])[0])(gradient(Scanned(), ())[1])
    )
    assert {path for path in paths if path[-1] == "remat2"} == {("scan", "remat2")}


def test_scanned_layers_keep_less() -> None:
    def temporaries(patterns: Any) -> int:
        function, params = gradient(Scanned(length=64), patterns)
        return jax.jit(function).lower(params).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(["Layer"]) < 0.5 * temporaries(())


def test_unrolled_layers_keep_less_in_the_jaxpr() -> None:
    def residuals(patterns: Any) -> int:
        function, params = gradient(Stack(), patterns)
        loss = lambda p: function.__wrapped__(p)[0]  # noqa: E731
        _, backward = jax.vjp(loss, params)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert residuals(["Block"]) < 0.7 * residuals(())


def test_activations_inside_are_still_spread() -> None:
    config = ParallelConfig()
    layout = BatchLayout.of(build_mesh(config), config)
    plain, params = gradient(Scanned(), (), layout)
    again, _ = gradient(Scanned(), ["Layer"], layout)
    paths = list(primitives(jax.make_jaxpr(again)(params)))
    inside = [path for path in paths if path[-1] == "sharding_constraint" and "remat2" in path]
    assert len([path for path in inside if "scan" in path]) >= 2
    expected, found = jax.jit(plain)(params), jax.jit(again)(params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_another_interceptor_sees_each_call_once() -> None:
    calls: list[str] = []

    def count(next_fn: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name == "__call__" and type(context.module) is Block:
            calls.append(context.module.name)
        return next_fn(*args, **kwargs)

    function, params = gradient(Stack(), ["Block"])
    with nn.intercept_methods(count):
        jax.eval_shape(function, params)
    assert calls == ["block_0", "block_1"]


def test_an_interceptor_of_the_model_itself_is_refused() -> None:
    class Intercepting(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
            with nn.intercept_methods(lambda next_fn, args, kwargs, _: next_fn(*args, **kwargs)):
                return Layer()(x, train)[0]

    function, params = gradient(Intercepting(), ["Layer"])
    with pytest.raises(ConfigError, match="these do not go together. Use nn.remat in the model"):
        jax.eval_shape(function, params)


CompiledDense = nn.jit(nn.Dense)


class Compiled(nn.Module):
    """Its layer is traced once for all calls with the same shapes."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return CompiledDense(3)(x)


class Attending(nn.Module):
    """Products with parameters, and products of activations with each other."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for index in range(2):
            x = x + nn.Dense(WIDTH)(Scores(name=f"scores_{index}")(x))
        return x


class Scores(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        parts = nn.tanh(nn.Dense(3 * WIDTH)(x))
        query, key, value = jnp.split(parts.reshape(4, -1, 3 * WIDTH), 3, axis=-1)
        scores = nn.softmax(query @ key.swapaxes(1, 2))
        return nn.Dense(WIDTH)(jnp.sin(scores @ value).reshape(x.shape))


POLICIES = list(REMAT_POLICIES)


def test_the_policies_are_those_of_jax_and_each_computes_less_again_than_the_one_before() -> None:
    found = []
    for policy in POLICIES:
        function, params = gradient(Attending(), ["Scores"], policy=policy)
        found.append(
            sum(p[-1] == "dot_general" for p in primitives(jax.make_jaxpr(function)(params)))
        )
    plain, params = gradient(Attending(), ())
    least = sum(p[-1] == "dot_general" for p in primitives(jax.make_jaxpr(plain)(params)))
    # Of each of two modules: two products of activations, and one with parameters besides (the
    # result of the last one is needed nowhere).
    assert found == [least + 2 * 3, least + 2 * 2, least, least]


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_kept_does_not_change_the_numbers(policy: str) -> None:
    plain, params = gradient(Attending(), ())
    kept, _ = gradient(Attending(), ["Scores"], policy=policy)
    expected, found = jax.jit(plain)(params), jax.jit(kept)(params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_policy_that_keeps_more_leaves_more_for_the_backward_pass() -> None:
    sizes = []
    for policy in POLICIES:
        function, params = gradient(Attending(), ["Scores"], policy=policy)
        _, backward = jax.vjp(lambda p, f=function: f.__wrapped__(p)[0], params)
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(backward)))
    assert sizes == sorted(set(sizes))


def test_policies_that_cannot_be_are_refused() -> None:
    problems = ParallelConfig(remat=("Block",), remat_policy="dots_savable").problems()
    assert len(problems) == 1 and "Did you mean 'dots_saveable'?" in problems[0]
    problems = ParallelConfig(remat_policy="dots_saveable").problems()
    assert len(problems) == 1 and "with remat=(), expected modules" in problems[0]


def test_a_trace_that_jax_remembers_is_not_used() -> None:
    counts = [num_checkpoints(*gradient(Compiled(), names)) for names in ((), ["Dense"], ())]
    assert counts[0] == counts[2] == 0
    assert counts[1] > 0


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("Block", True),
        ("*ock", True),
        ("Bloc", False),
        ("encoder/block_0", True),
        ("*/block_*", True),
        ("block_0", False),
        ("encoder", False),
        ("encoder/*/*", False),
        ("re:.*/block_[0-3]", True),
        ("re:block", False),
    ],
)
def test_a_module_is_named_by_class_or_by_whole_path(pattern: str, expected: bool) -> None:
    assert names_module(pattern, ModuleName("Block", "encoder/block_0")) == expected


def modules_of(model: nn.Module) -> list[ModuleName]:
    with record_modules() as seen:
        jax.eval_shape(model.init, jax.random.key(0), X)
    return seen


def test_all_modules_are_seen() -> None:
    assert {tuple(module) for module in modules_of(Scanned())} == {
        ("Scanned", ""),
        ("Layer", "layers"),
        ("Dense", "layers/Dense_0"),
        ("Dropout", "layers/Dropout_0"),
        ("Dense", "layers/Dense_1"),
        ("Dense", "Dense_0"),
    }


def test_names_of_no_module_are_all_reported_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as error:
        check_remat(["Layr", "Layer", "layers/Dens_0"], modules_of(Scanned()))
    first, second = error.value.problems
    assert first.startswith("parallel.remat: 'Layr' names no module of the model. Did you mean 'La")
    assert "Did you mean 'layers/Dense_0'?" in second


def test_a_model_without_linen_modules_cannot_be_asked() -> None:
    with pytest.raises(ConfigError, match=r"calls no Flax Linen module. Use jax.checkpoint"):
        check_remat(["Block"], [])
    check_remat([], [])
