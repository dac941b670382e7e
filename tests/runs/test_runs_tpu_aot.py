"""What does FSDP cost on a TPU v5e 2x4? The step is compiled for it ahead of time, without a TPU.

The machine needs no TPU, but its compiler: ``pip install "jax[tpu]"``.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import byte_lm
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hlo_zoo import Program
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
from lm.model import Transformer, rotate

import xtrainer as xt
from xtrainer.parallel import BatchLayout, state_shardings
from xtrainer.state import TrainState

pytestmark = pytest.mark.slow

ROWS, LENGTH, LAYERS, DIM, HEADS = 32, 256, 4, 512, 8
TOPOLOGY = "v5e:2x4"
OPTIMIZER = optax.adamw(1e-3)
MODEL = Transformer(
    context_length=LENGTH, num_layers=LAYERS, embed_dim=DIM, num_heads=HEADS, mlp_dim=4 * DIM
)
PARALLEL = xt.ParallelConfig(data_axis_size=1, fsdp_axis_size=8, fsdp_min_weight_size=1024)


@pytest.fixture(scope="module")
def mesh() -> Any:
    """Gives a mesh of eight TPU devices that do not exist."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.fail(
            "Found no libtpu, expected the TPU compiler that these tests were asked to run with. "
            'Run: pip install "xtrainer[tpu]"'
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")  # no question to a cloud's metadata server
        topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY)
        yield xt.build_mesh(PARALLEL, topology.devices)


def loss_function(params: Any, apply_fn: Any, batch: Any, rng: Any, train: bool = True) -> Any:
    """Returns the loss of the experiment, which needs no trainer."""
    return byte_lm.ByteLM.loss_function(None, params, apply_fn, batch, rng, train)  # type: ignore[arg-type]


def abstract_state(mesh: Any) -> tuple[TrainState, TrainState]:
    """Returns the shapes of the state, and its shardings by xtrainer's rules."""

    def create() -> TrainState:
        key = jax.random.key(0)
        params = MODEL.init(key, jnp.zeros((1, LENGTH), jnp.uint8))["params"]
        return TrainState.create(params, OPTIMIZER, key)

    state = jax.eval_shape(create)
    return state, state_shardings(state, mesh, PARALLEL)


def abstract_batch(sharding: NamedSharding) -> dict[str, jax.ShapeDtypeStruct]:
    dtypes = {"inputs": np.uint8, "targets": np.uint8, "mask": np.float32}
    return {
        name: jax.ShapeDtypeStruct((ROWS, LENGTH), dtype, sharding=sharding)
        for name, dtype in dtypes.items()
    }


def compile_for(mesh: Any, step: Callable[..., Any], state: Any, shardings: Any) -> Any:
    """Returns ``step(state, batch)`` compiled for the mesh; the state is donated."""
    layout = BatchLayout.of(mesh, PARALLEL)
    rows, whole = layout.sharding(ROWS), layout.replicated
    return (
        jax.jit(
            step,
            in_shardings=(shardings, rows),
            out_shardings=(shardings, whole),
            donate_argnums=0,
        )
        .lower(state, abstract_batch(rows))
        .compile()
    )


@pytest.fixture(scope="module")
def by_trainer(mesh: Any) -> Any:
    """Gives the step of xtrainer, compiled."""
    state, shardings = abstract_state(mesh)
    settings = xt.StepSettings(
        layout=BatchLayout.of(mesh, PARALLEL), param_shardings=shardings.params
    )
    step = xt.make_train_step(loss_function, MODEL.apply, OPTIMIZER, settings)

    def run(state: TrainState, batch: Any) -> Any:
        state, metrics, report = step(state, batch)
        return state, (metrics, report)

    return compile_for(mesh, run, state, shardings)


@pytest.fixture(scope="module")
def by_hand(mesh: Any) -> Any:
    """Gives a step of plain JAX and Optax, every activation constrained by hand, compiled."""
    state, shardings = abstract_state(mesh)
    parts = {"params": state.params, "opt_state": state.opt_state}
    places = {"params": shardings.params, "opt_state": shardings.opt_state}
    spread = NamedSharding(mesh, PartitionSpec(("dp", "fsdp")))

    def keep(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, spread)

    def loss(params: Any, batch: Any) -> jax.Array:
        logits = hand_model(params, batch["inputs"], keep)
        targets = batch["targets"].astype(jnp.int32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return (losses * batch["mask"]).sum() / batch["mask"].sum()

    def step(state: Any, batch: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(state["params"], batch)
        grads = jax.lax.with_sharding_constraint(grads, shardings.params)
        updates, opt_state = OPTIMIZER.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt_state": opt_state}, value

    return compile_for(mesh, step, parts, places)


def hand_model(params: Any, tokens: jax.Array, keep: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Returns the logits of the transformer, with ``keep`` applied to what each layer gives."""

    def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
        size = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
        return keep(x * size * scale.reshape((1,) * (x.ndim - 1) + (-1,)))

    def shift(x: jax.Array, taps: jax.Array) -> jax.Array:
        mixed = x
        for back, tap in enumerate(taps, 1):
            earlier = jnp.pad(x, ((0, 0), (back, 0), (0, 0)))[:, : x.shape[1]]
            mixed = mixed + earlier * tap[None, None, :]
        return keep(mixed)

    x = keep(params["Embed_0"]["embedding"][tokens.astype(jnp.int32)])
    x = norm(x, params["embed_norm"]["scale"])
    for layer in range(LAYERS):
        block = params[f"block_{layer}"]
        inner = block["attention"]
        h = shift(norm(x, block["attention_norm"]["scale"]), block["shift"]["taps"])
        qkv = keep(h @ inner["qkv"]["kernel"])
        qkv = qkv.reshape(*qkv.shape[:2], 3, HEADS, DIM // HEADS)
        query = rotate(norm(qkv[:, :, 0], inner["query_norm"]["scale"]))
        key = rotate(norm(qkv[:, :, 1], inner["key_norm"]["scale"]))
        mixed = jax.nn.dot_product_attention(query, key, qkv[:, :, 2], is_causal=True)
        x = x + keep(mixed.reshape(x.shape) @ inner["out"]["kernel"])
        h = keep(norm(x, block["mlp_norm"]["scale"]) @ block["up"]["kernel"])
        x = x + keep(jnp.square(jax.nn.relu(h)) @ block["down"]["kernel"])
    return keep(norm(x, params["final_norm"]["scale"]) @ params["head"]["kernel"])


def test_the_model_by_hand_is_the_model() -> None:
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, LENGTH)), jnp.uint8)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), tokens)["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.05, shapes)
    expected = MODEL.apply({"params": params}, tokens)
    found = hand_model(params, tokens, lambda x: x)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_temporaries_are_those_of_a_model_constrained_by_hand(
    by_trainer: Any, by_hand: Any
) -> None:
    found, bound = (one.memory_analysis().temp_size_in_bytes for one in (by_trainer, by_hand))
    print(f"temporaries: {found / 2**20:.1f} MiB, by hand {bound / 2**20:.1f} MiB")
    assert found <= 1.3 * bound


def test_the_state_is_divided_and_donated(by_trainer: Any, mesh: Any) -> None:
    state, _ = abstract_state(mesh)
    whole = sum(leaf.size * 4 for leaf in jax.tree.leaves((state.params, state.opt_state)))
    memory = by_trainer.memory_analysis()
    assert memory.argument_size_in_bytes < whole / 7
    assert memory.alias_size_in_bytes > 0.95 * memory.argument_size_in_bytes


def test_gradients_are_reduced_and_nothing_goes_from_all_to_all(by_trainer: Any) -> None:
    compiled = Program(by_trainer.as_text())
    assert compiled.collectives("all-to-all") == []
    assert compiled.collectives("all-gather")
    assert compiled.collectives("reduce-scatter")
