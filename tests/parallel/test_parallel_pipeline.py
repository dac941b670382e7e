"""Is a stack of blocks the same, split over pipeline stages and not?"""

import logging
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from jax.sharding import NamedSharding, PartitionSpec

from xtrainer.errors import BatchError, ConfigError
from xtrainer.parallel import (
    BatchLayout,
    ParallelConfig,
    PipelinedStack,
    bubble_fraction,
    build_mesh,
    lay_out,
    pipeline,
    read_annotations,
    stages_of,
    unbox,
)
from xtrainer.parallel.pipeline import _report

LAYERS, ROWS, WIDTH = 8, 16, 4
KEY = jax.random.key(3)
MESHES = {
    "4dp_2pp": {"data_axis_size": 4, "pipeline_axis_size": 2},
    "2dp_2fsdp_2pp": {"data_axis_size": 2, "fsdp_axis_size": 2, "pipeline_axis_size": 2},
    "2dp_4pp": {"data_axis_size": 2, "pipeline_axis_size": 4},
    "2fsdp_4pp": {"data_axis_size": 1, "fsdp_axis_size": 2, "pipeline_axis_size": 4},
    "2dp_2pp_2tp": {"data_axis_size": 2, "pipeline_axis_size": 2, "model_axis_size": 2},
    "8pp": {"data_axis_size": 1, "pipeline_axis_size": 8},
}
OVER = {"kernel": PartitionSpec("pp", None, "fsdp"), "bias": PartitionSpec("pp")}


def layout_of(**sizes: int) -> BatchLayout:
    config = ParallelConfig(**sizes)
    return BatchLayout.of(build_mesh(config), config)


def make_params(layers: int = LAYERS) -> dict[str, Any]:
    draw = np.random.default_rng(0).normal
    return {
        "kernel": draw(size=(layers, WIDTH, WIDTH), scale=0.5).astype(np.float32),
        "bias": draw(size=(layers, WIDTH)).astype(np.float32),
    }


def make_x(rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(rows, WIDTH)).astype(np.float32)


def block(params: Any, x: jax.Array, rngs: Any) -> jax.Array:
    hidden = jnp.tanh(x @ params["kernel"] + params["bias"][None])
    if rngs is None:
        return x + hidden
    return x + jnp.where(jax.random.bernoulli(rngs, 0.7, x.shape), hidden / 0.7, 0.0)


def direction(params: Any, x: jax.Array, rngs: Any) -> jax.Array:
    """A block that is not finite for rows of zeros, and its derivative neither."""
    return block(params, x, rngs) / jnp.linalg.norm(x, axis=-1, keepdims=True)


def compile_with_gradient(
    layout: BatchLayout | None, count: int, rngs: Any, function: Callable[..., Any] = block
) -> Any:
    """Returns the compiled function from parameters and x to the output and both gradients."""

    def loss(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        with stages_of(layout):
            y = pipeline(function, params, x, num_microbatches=count, rngs=rngs)
        return jnp.mean(y**2 * jnp.arange(1.0, WIDTH + 1)[None]), y

    shardings = None
    if layout is not None:
        over = {name: NamedSharding(layout.mesh, spec) for name, spec in OVER.items()}
        shardings = (over, layout.sharding(ROWS))
    grad = jax.grad(loss, argnums=(0, 1), has_aux=True)
    outputs = None if shardings is None else (shardings, shardings[1])
    compiled = jax.jit(grad, in_shardings=shardings, out_shardings=outputs)
    return compiled.lower(make_params(), make_x()).compile()


def assert_near(found: Any, expected: Any) -> None:
    """Compares two trees, each leaf relative to its largest entry."""

    def compare(a: np.ndarray, b: np.ndarray) -> None:
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())

    jax.tree.map(compare, zoo.host(found), zoo.host(expected))


def run(compiled: Any) -> Any:
    # By the shardings it was compiled for: what is compiled takes no others.
    inputs = jax.device_put((make_params(), make_x()), compiled.input_shardings[0])
    return compiled(*inputs)


def test_a_stack_runs_its_layers_in_order() -> None:
    expected, params = jnp.asarray(make_x()), make_params()
    for index in range(LAYERS):
        expected = block(jax.tree.map(lambda p, i=index: p[i], params), expected, None)
    y = pipeline(block, params, make_x(), num_microbatches=4)
    zoo.assert_close(y, expected)


def test_random_numbers_are_those_of_layer_and_micro_batch() -> None:
    count, params = 4, make_params()
    expected = np.array(make_x())
    for piece in range(count):
        x = jnp.asarray(expected[piece::count])
        for index in range(LAYERS):
            key = jax.random.fold_in(jax.random.fold_in(KEY, index), piece)
            x = block(jax.tree.map(lambda p, i=index: p[i], params), x, key)
        expected[piece::count] = x
    zoo.assert_close(pipeline(block, params, make_x(), num_microbatches=count, rngs=KEY), expected)


@pytest.mark.parametrize(("name", "count"), [("2dp_4pp", 1), *((name, 4) for name in MESHES)])
def test_stages_give_the_outputs_and_gradients_of_the_unsplit_stack(name: str, count: int) -> None:
    whole = run(compile_with_gradient(None, count, KEY))
    split = run(compile_with_gradient(layout_of(**MESHES[name]), count, KEY))
    assert_near(split, whole)


def test_an_idle_stage_adds_nothing_to_the_gradient_even_where_it_computes_nan() -> None:
    whole = run(compile_with_gradient(None, 2, None, direction))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(whole))
    split = run(compile_with_gradient(layout_of(**MESHES["2dp_4pp"]), 2, None, direction))
    assert_near(split, whole)


def test_rows_that_do_not_divide_over_the_devices_give_the_same() -> None:
    whole = run(compile_with_gradient(None, 8, KEY))
    split = run(compile_with_gradient(layout_of(**MESHES["4dp_2pp"]), 8, KEY))  # 2 rows on 4
    assert_near(split, whole)


def test_stages_hand_on_activations_and_never_gather_parameters() -> None:
    text = compile_with_gradient(layout_of(**MESHES["2dp_4pp"]), 4, KEY).as_text()
    assert "collective-permute(" in text
    assert "all-gather(" not in text and "all-to-all(" not in text


def test_beside_stages_fsdp_gathers_one_layer_at_a_time() -> None:
    text = compile_with_gradient(layout_of(**MESHES["2dp_2fsdp_2pp"]), 4, KEY).as_text()
    gathered = re.findall(r"f32\[([\d,]*)\]\S* all-gather\(", text)
    sizes = [np.prod([int(n) for n in shape.split(",")]) for shape in gathered]
    assert sizes and max(sizes) == WIDTH * WIDTH


@pytest.mark.parametrize("stages", [2, 4])
def test_a_device_holds_the_parameters_of_its_stage(stages: int) -> None:
    layout = layout_of(data_axis_size=-1, pipeline_axis_size=stages)
    compiled = compile_with_gradient(layout, 4, KEY)
    (params, _), _ = run(compiled)
    for leaf in jax.tree.leaves(params):
        assert leaf.addressable_shards[0].data.nbytes == leaf.nbytes // stages
    taken = sum(leaf.nbytes for leaf in jax.tree.leaves(make_params())) // stages
    rows = make_x().nbytes // layout.num_shards
    assert compiled.memory_analysis().argument_size_in_bytes == taken + rows


def test_trees_of_activations_and_of_keys_go_through() -> None:
    def two(params: Any, x: Any, rngs: Any) -> Any:
        hidden = block(params, x["h"] * x["mask"][:, None], rngs["dropout"])
        return {"h": hidden, "mask": x["mask"]}

    x = {"h": make_x(), "mask": (np.arange(ROWS) % 3 > 0).astype(np.float32)}
    call = lambda x: pipeline(  # noqa: E731
        two, make_params(), x, num_microbatches=4, rngs={"dropout": KEY}
    )
    whole = call(x)
    with stages_of(layout_of(**MESHES["2dp_4pp"])):
        zoo.assert_close(jax.jit(call)(x), whole)
    np.testing.assert_array_equal(whole["mask"], x["mask"])


def test_a_trace_for_one_mesh_is_not_used_for_another() -> None:
    traced = []

    @jax.jit
    def forward(x: jax.Array) -> jax.Array:
        traced.append(0)
        return pipeline(block, make_params(), x, num_microbatches=4)

    for layout in (None, layout_of(**MESHES["2dp_4pp"]), layout_of(**MESHES["8pp"]), None):
        with stages_of(layout):
            forward(make_x())
    assert len(traced) == 3


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layers": 6}, ConfigError, r"found 4 stages for a stack of 6 layers, expected a divisor"),
        ({"rows": 6}, BatchError, r"6 rows does not divide into num_microbatches=4 parts"),
        ({"count": 0}, BatchError, r"does not divide into num_microbatches=0"),
        ({"x": np.float32(1)}, BatchError, r"shapes \[\(\)\], expected arrays whose first axis"),
        ({"params": {"a": np.ones(3), "b": np.ones(4)}}, ConfigError, r"expected one number of"),
        ({"params": {}}, ConfigError, r"found parameters whose first axes are \[\]"),
        (
            {"block": lambda p, x, r: x.astype("bfloat16")},
            ConfigError,
            r"returns bfloat16\[4, 4\] for float32\[4, 4\], expected the same",
        ),
        ({"block": lambda p, x, r: (x, x)}, ConfigError, r"the block returns \("),
    ],
)
def test_what_cannot_be_a_pipeline_is_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    params = change.get("params", make_params(change.get("layers", LAYERS)))
    x = change.get("x", make_x(change.get("rows", ROWS)))
    with stages_of(layout_of(**MESHES["2dp_4pp"])), pytest.raises(error, match=message):
        pipeline(change.get("block", block), params, x, num_microbatches=change.get("count", 4))


@pytest.mark.parametrize(("stages", "pieces", "idle"), [(1, 5, 0.0), (2, 1, 0.5), (4, 12, 0.2)])
def test_the_bubble_is_the_idle_part_of_all_ticks(stages: int, pieces: int, idle: float) -> None:
    assert bubble_fraction(stages, pieces) == pytest.approx(idle)


def test_the_bubble_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    _report.cache_clear()
    with caplog.at_level(logging.INFO, logger="xtrainer.parallel.pipeline"):
        for _ in range(2):
            compile_with_gradient(layout_of(**MESHES["2dp_4pp"]), 4, KEY)
    (record,) = caplog.records
    assert "4 stages, 4 micro-batches: a stage waits for 42.9 % of the time" in record.getMessage()


class Block(nn.Module):
    """A residual block with dropout; its kernel may name its axes."""

    names: tuple[Any, ...] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        init = nn.initializers.lecun_normal()
        init = init if self.names is None else nn.with_partitioning(init, self.names)
        hidden = nn.LayerNorm()(x)
        hidden = nn.tanh(nn.Dense(x.shape[-1], kernel_init=init)(hidden))
        return x + nn.Dropout(0.2, deterministic=not train)(hidden)


class Model(nn.Module):
    """A classifier with a stack in the middle; it names no mesh axis."""

    layers: int = 4
    microbatches: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Dense(8)(x)
        x = PipelinedStack(Block, self.layers, self.microbatches, name="stack")(x, train=train)
        return nn.Dense(3)(x)


class Trainer(zoo.Classifier):
    model_class = Model


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.BatchNorm(use_running_average=True)(x)


def specs_of(names: Any = None, rules: Any = (), layers: int = 4, **sizes: int) -> dict[str, Any]:
    """Returns how the parameters of a stack are laid out, without what has one number per row."""
    config = ParallelConfig(param_rules=rules, fsdp_min_weight_size=16, **sizes)
    stack = PipelinedStack(lambda: Block(names), layers, 2)
    boxed = jax.eval_shape(stack.init, KEY, make_x())["params"]
    specs = lay_out(unbox(boxed), build_mesh(config), config, read_annotations(boxed)).specs
    return {path.removeprefix("layers/"): spec for path, spec in specs.items()}


def test_a_linen_stack_is_that_of_nn_scan_with_the_same_parameters() -> None:
    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            body = lambda block, x, _: (block(x), None)  # noqa: E731
            layers = nn.scan(
                body, variable_axes={"params": 0}, split_rngs={"params": True}, length=4
            )
            return layers(Block(name="layers"), x, None)[0]

    variables = Scanned().init(KEY, make_x())
    y = PipelinedStack(Block, 4, 2).apply(variables, make_x())
    zoo.assert_close(y, Scanned().apply(variables, make_x()))


def test_the_layers_of_a_linen_stack_begin_different() -> None:
    params = unbox(PipelinedStack(Block, 4, 2).init(KEY, make_x()[:1]))["params"]
    kernel = np.asarray(params["layers"]["Dense_0"]["kernel"])
    assert kernel.shape == (4, WIDTH, WIDTH)
    assert len({leaf.tobytes() for leaf in kernel}) == 4


def test_the_layers_lie_over_the_stages_and_the_rest_follows_the_default() -> None:
    specs = specs_of(**MESHES["2dp_2fsdp_2pp"])
    assert specs["Dense_0/kernel"] == PartitionSpec("pp", "fsdp", None)
    assert specs["Dense_0/bias"] == PartitionSpec("pp")


def test_a_rule_lays_out_the_axes_behind_the_layers() -> None:
    rules = (("*/kernel", (None, None, "tp")), ("*/bias", ("tp",)))
    specs = specs_of(rules=rules, **MESHES["2dp_2pp_2tp"])
    assert specs["Dense_0/kernel"] == PartitionSpec("pp", None, "tp")
    assert specs["Dense_0/bias"] == PartitionSpec("tp")  # a rule may say otherwise


def test_the_metadata_of_a_block_is_that_of_one_layer() -> None:
    specs = specs_of((None, "tp"), **MESHES["2dp_2pp_2tp"])
    assert specs["Dense_0/kernel"] == PartitionSpec("pp", None, "tp")
    assert specs["LayerNorm_0/scale"] == PartitionSpec("pp")


def test_layers_that_the_stages_do_not_divide_are_left_to_the_pipeline_to_refuse() -> None:
    assert specs_of(layers=3, **MESHES["4dp_2pp"])["Dense_0/bias"] == PartitionSpec(None)
    parallel = ParallelConfig(data_axis_size=4, pipeline_axis_size=2)
    with pytest.raises(ConfigError, match="found 2 stages for a stack of 3 layers"):
        zoo.make_trainer(Trainer, model={"layers": 3}, parallel=parallel)


def test_stages_without_a_pipeline_are_reported() -> None:
    config = ParallelConfig(data_axis_size=4, pipeline_axis_size=2)
    (line,) = lay_out({"kernel": np.ones((4, 4))}, build_mesh(config), config).unused
    assert "pipeline_axis_size: no parameter lies over the 2 stages, which all do the" in line


def test_a_block_with_statistics_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Normalized has the collections \['batch_stats'\]"):
        PipelinedStack(Normalized, 4, 2).init(KEY, make_x())


def test_a_stack_inside_of_another_is_refused() -> None:
    class Body(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return PipelinedStack(Block, 4, 2)(x)

    several = nn.vmap(
        Body, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=2
    )
    with pytest.raises(ConfigError, match=r"found inside of nn\.scan or nn\.vmap"):
        several().init(KEY, make_x())


def trained(parallel: ParallelConfig, count: int, **config: Any) -> Any:
    """Returns the trainer after five steps of SGD on the first devices."""
    trainer = zoo.make_trainer(
        Trainer,
        optimizer=zoo.optimizer(lr=0.1, momentum=0.9),
        mesh=build_mesh(parallel, jax.devices()[:count]),
        parallel=parallel,
        **config,
    )
    trainer.train_model(zoo.loader(80), None, num_epochs=1)
    return trainer


@pytest.fixture(scope="module")
def alone() -> Any:
    return trained(ParallelConfig(), 1)


@pytest.fixture(scope="module")
def staged() -> Any:
    return trained(ParallelConfig(data_axis_size=2, pipeline_axis_size=2), 4)


def test_a_trainer_learns_the_same_with_and_without_stages(alone: Any, staged: Any) -> None:
    assert staged.global_step == 5
    zoo.assert_close(staged.state.params, alone.state.params, rtol=1e-5, atol=1e-5)


def test_an_evaluation_gives_the_same_with_and_without_stages(alone: Any, staged: Any) -> None:
    expected = alone.eval_model(zoo.loader(40))  # the last batch is padded
    assert staged.eval_model(zoo.loader(40)) == pytest.approx(expected, rel=1e-5)


def test_the_optimizer_state_lies_over_the_stages_as_well(staged: Any) -> None:
    kernel = staged.state.params["stack"]["layers"]["Dense_0"]["kernel"]
    assert kernel.sharding.spec[0] == "pp"
    moments = [leaf for leaf in jax.tree.leaves(staged.state.opt_state) if leaf.ndim == 3]
    assert moments and all(leaf.sharding == kernel.sharding for leaf in moments)


def test_stages_go_together_with_fsdp_and_recomputation(alone: Any) -> None:
    sizes = {"data_axis_size": 1, "fsdp_axis_size": 2, "pipeline_axis_size": 4}
    parallel = ParallelConfig(fsdp_min_weight_size=16, remat=("Block",), **sizes)
    trainer = trained(parallel, 8)
    zoo.assert_close(trainer.state.params, alone.state.params, rtol=1e-5, atol=1e-5)


def test_stages_go_together_with_accumulation() -> None:
    options = {"gradient_accumulate_steps": 2}
    whole = trained(ParallelConfig(), 1, **options)
    split = trained(ParallelConfig(data_axis_size=2, pipeline_axis_size=2), 4, **options)
    zoo.assert_close(split.state.params, whole.state.params, rtol=1e-5, atol=1e-5)


def test_the_activations_inside_of_a_block_are_spread_over_the_batch_axes() -> None:
    trainer = zoo.make_trainer(
        Trainer, parallel=ParallelConfig(data_axis_size=4, pipeline_axis_size=2)
    )
    step = trainer.create_evaluation_step_function()
    text = str(jax.make_jaxpr(step)(trainer.state, zoo.classification_data(16)))
    spread = re.findall(r"f32\[2,8,8\] = sharding_constraint\[[^]]*?P\('pp', (?!UNCONS)", text)
    # The buffer before, between and after the ticks; the outputs of Block, LayerNorm, Dense and
    # Dropout.
    assert len(spread) == 3 + 4


def test_a_batch_that_micro_batches_do_not_divide_stops_the_trainer() -> None:
    with pytest.raises(BatchError, match="16 rows does not divide into num_microbatches=3"):
        zoo.make_trainer(Trainer, model={"microbatches": 3}, mesh=zoo.devices(1))
