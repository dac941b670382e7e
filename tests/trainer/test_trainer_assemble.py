"""How do a model, an optimizer and a mesh become a state?"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from jax.sharding import PartitionSpec

import xtrainer as xt
from xtrainer.errors import ConfigError, MeshError
from xtrainer.trainer import shapes_only
from xtrainer.trainer.assemble import (
    abstract_state,
    build_model,
    init_state,
    init_variables,
    model_layout,
)


class Scaled(nn.Module):
    """Takes two inputs, and no ``train``."""

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array) -> jax.Array:
        return nn.Dense(3)(x) * scale


class Marked(nn.Module):
    """A layer whose parameter carries names of mesh axes, and a collection without values."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.with_partitioning(nn.initializers.ones, ("fsdp", None))
        self.sow("intermediates", "mean", x.mean())
        return x @ self.param("kernel", init, (x.shape[-1], 2))


def linear(x: Any, rng: Any) -> Any:
    return {"params": {"w": jax.random.normal(rng, (x.shape[-1], 8))}}


EXAMPLE = jax.ShapeDtypeStruct((4, 3), jnp.float32)


@pytest.mark.parametrize(
    ("arguments", "width"),
    [(None, 8), ({}, 8), ({"width": 5}, 5)],
)
def test_a_mapping_gives_keyword_arguments_and_none_gives_none(arguments: Any, width: int) -> None:
    config = xt.ModelConfig(model_class=zoo.MLP, model_config=arguments)
    assert build_model(config).width == width


def test_any_other_object_is_the_one_argument() -> None:
    config = xt.ModelConfig(model_class=lambda argument: ("model", argument), model_config=7)
    assert build_model(config) == ("model", 7)


def test_a_name_stands_for_the_registered_class() -> None:
    xt.register_model("assemble_scaled")(Scaled)
    assert type(build_model(xt.ModelConfig(model_class="assemble_scaled"))) is Scaled


def test_the_class_of_the_config_counts_more_than_the_default() -> None:
    assert type(build_model(xt.ModelConfig(), zoo.MLP)) is zoo.MLP
    assert type(build_model(xt.ModelConfig(model_class=Marked), zoo.MLP)) is Marked


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (xt.ModelConfig(), "model.model_class: found None, and the trainer has no class attribute"),
        (xt.ModelConfig(model_class="no_such"), "No model is registered as 'no_such'"),
        (
            xt.ModelConfig(model_class=zoo.MLP, model_config={"widht": 3}),
            "model.model_config: MLP refuses its arguments: .*widht",
        ),
    ],
)
def test_a_model_that_cannot_be_built_is_an_error(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(config)


def test_a_tuple_of_inputs_stands_for_several_arguments() -> None:
    inputs = (jnp.ones((2, 4)), jnp.ones((2, 1)))
    variables = init_variables(Scaled(), inputs, {"params": jax.random.key(0)})
    assert variables["params"]["Dense_0"]["kernel"].shape == (4, 3)


def test_a_model_that_takes_train_is_initialized_without_it() -> None:
    seen = []

    class Curious(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
            seen.append(train)
            return nn.Dense(1)(x)

    init_variables(Curious(), jnp.ones((2, 4)), {"params": jax.random.key(0)})
    assert seen == [False]


def test_parameters_come_from_the_seed_alone() -> None:
    states = [
        init_state(linear, EXAMPLE, optax.sgd(0.1), seed, zoo.devices(count))
        for seed, count in ((0, 1), (0, 8), (1, 1))
    ]
    zoo.assert_same(states[0], states[1])
    assert not np.array_equal(states[0].params["w"], states[2].params["w"])
    assert not np.array_equal(*(zoo.host(state.rng) for state in (states[0], states[2])))


def test_parameters_and_what_mirrors_them_are_made_where_they_live() -> None:
    parallel = xt.ParallelConfig(data_axis_size=1, fsdp_axis_size=8, fsdp_min_weight_size=0)
    state = init_state(linear, EXAMPLE, optax.adam(0.1), parallel=parallel)
    assert state.params["w"].sharding.spec == PartitionSpec(None, "fsdp")
    assert state.opt_state[0].mu["w"].sharding.spec == PartitionSpec(None, "fsdp")
    assert state.step.sharding.spec == PartitionSpec()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_have_the_dtype_of_the_precision(dtype: str) -> None:
    precision = xt.PrecisionConfig(param_dtype=dtype)
    state = init_state(linear, EXAMPLE, optax.sgd(0.1), mesh=zoo.devices(1), precision=precision)
    assert state.params["w"].dtype == dtype


def test_names_of_axes_are_taken_off_and_sown_values_are_left_out() -> None:
    state = init_state(
        lambda x, rng: Marked().init(rng, x), EXAMPLE, optax.sgd(0.1), mesh=zoo.devices(1)
    )
    assert state.params["kernel"].shape == (3, 2)
    assert state.mutable_variables == {}


def test_other_collections_are_carried_along() -> None:
    model = zoo.MLP(batch_norm=True)
    state = init_state(
        lambda x, rng: model.init(rng, x), EXAMPLE, optax.sgd(0.1), mesh=zoo.devices(1)
    )
    assert set(state.mutable_variables) == {"batch_stats"}


@pytest.mark.parametrize("variables", [{}, {"params": {}}, {"batch_stats": {"a": jnp.ones(2)}}])
def test_a_model_without_parameters_is_an_error(variables: Any) -> None:
    with pytest.raises(ConfigError, match="no parameters, expected a collection 'params'"):
        init_state(lambda x, rng: variables, EXAMPLE, optax.sgd(0.1))


class Named(nn.Module):
    """Two layers whose kernels have logical axes."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.lecun_normal()
        x = nn.Dense(8, kernel_init=nn.with_logical_partitioning(init, ("embed", "mlp")))(x)
        return nn.Dense(4, kernel_init=nn.with_logical_partitioning(init, ("mlp", "out")))(x)


FEATURES = jax.ShapeDtypeStruct((16, 4), np.float32)


def named_state(**fields: Any) -> Any:
    parallel = xt.ParallelConfig(fsdp_axis_size=2, model_axis_size=2, **fields)
    init = lambda x, rng: Named().init(rng, x)  # noqa: E731
    return init_state(init, FEATURES, optax.adam(0.1), parallel=parallel)


def test_the_metadata_of_the_model_lays_out_parameters_and_moments() -> None:
    state = named_state(logical_axis_rules=(("embed", "fsdp"), ("mlp", "tp"), ("out", None)))
    for tree in (state.params, state.opt_state[0].mu, state.opt_state[0].nu):
        assert tree["Dense_0"]["kernel"].sharding.spec == PartitionSpec("fsdp", "tp")
        assert tree["Dense_1"]["kernel"].sharding.spec == PartitionSpec("tp", None)
        assert isinstance(tree["Dense_0"]["kernel"], jax.Array)
    alone = init_state(
        lambda x, rng: Named().init(rng, x), FEATURES, optax.adam(0.1), mesh=zoo.devices(1)
    )
    zoo.assert_close(state, alone, rtol=1e-6)


def test_rules_that_lay_out_nothing_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    named_state(
        logical_axis_rules=(("embed", "fsdp"), ("mlp", "tp")), param_rules=(("*/scale", ()),)
    )
    assert [record.getMessage() for record in caplog.records] == [
        "parallel.param_rules: the pattern '*/scale' names no parameter.",
        "parallel.logical_axis_rules: no rule for the logical axis 'out' (as of 'Dense_1/kernel'); "
        "its dimension stays whole.",
    ]


def test_metadata_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ConfigError, match="2 mistakes") as error:
        named_state(
            logical_axis_rules=(("embed", ("dp", "fsdp", "tp")), ("out", ("dp", "tp", "fsdp")))
        )
    assert all("does not divide by 8" in problem for problem in error.value.problems)


def test_the_layout_of_a_model_is_told_without_computing_it() -> None:
    parallel = xt.ParallelConfig(model_axis_size=2, logical_axis_rules=(("mlp", "tp"),))
    mesh = xt.build_mesh(parallel)
    layout = model_layout(lambda x, rng: Named().init(rng, x), FEATURES, mesh, parallel)
    assert layout.specs["Dense_1/kernel"] == PartitionSpec("tp", None)
    assert layout.origins["Dense_1/bias"] == "the default"
    assert [line.split("'")[1] for line in layout.unused] == ["embed", "out"]


def test_a_name_in_remat_that_no_module_has_is_an_error() -> None:
    named_state(remat=("Dense",))
    with pytest.raises(ConfigError, match="'Dens' names no module .* Did you mean 'Dense'"):
        named_state(remat=("Dense", "Dens"))
    with pytest.raises(ConfigError, match="calls no Flax Linen module"):
        init_state(linear, EXAMPLE, optax.sgd(0.1), parallel=xt.ParallelConfig(remat=("Dense",)))


def test_a_mesh_with_an_axis_of_its_own_is_refused() -> None:
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    with pytest.raises(MeshError, match="that ParallelConfig does not name"):
        init_state(linear, EXAMPLE, optax.sgd(0.1), mesh=mesh)


def test_an_abstract_state_is_the_shape_of_the_real_one() -> None:
    parallel = xt.ParallelConfig(fsdp_axis_size=8, fsdp_min_weight_size=8)
    precision = xt.PrecisionConfig(param_dtype="bfloat16")
    arguments = (linear, EXAMPLE, optax.adam(0.1), 3, None, parallel, precision)
    abstract, real = abstract_state(*arguments), init_state(*arguments)
    assert jax.tree.structure(abstract) == jax.tree.structure(real)
    for shape, array in zip(jax.tree.leaves(abstract), jax.tree.leaves(real), strict=True):
        assert isinstance(shape, jax.ShapeDtypeStruct)
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
        assert shape.weak_type == getattr(array, "weak_type", False)
        assert shape.sharding.is_equivalent_to(array.sharding, array.ndim)
    assert abstract.params["w"].sharding.spec == PartitionSpec(None, "fsdp")


def test_an_abstract_state_of_any_size_is_described() -> None:
    def huge(x: Any, rng: Any) -> Any:
        return {"params": {"w": jnp.zeros((2**30, 2**30))}}

    assert abstract_state(huge, EXAMPLE, optax.adam(0.1)).params["w"].size == 2**60


def test_only_trainers_built_inside_have_shapes_for_a_state() -> None:
    with shapes_only():
        inside = zoo.make_trainer()
    assert isinstance(inside.state.step, jax.ShapeDtypeStruct)
    assert inside.tabulate_params() == zoo.make_trainer().tabulate_params()
