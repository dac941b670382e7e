"""Does the ``apply_fn`` of a loss know the state's collections, and gather what changes?"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from step_zoo import Data, Net, assert_close, assert_identical, example_loss, make_data, make_state

from xtrainer.metrics import DeviceMetrics, HostWindow, finish
from xtrainer.parallel import BatchLayout, ParallelConfig, build_mesh, constrain_batch
from xtrainer.step import BoundApply, PrecisionConfig, StepSettings, make_eval_step, make_train_step

ROWS = 16
SGD = optax.sgd(0.1)


class Recorder:
    """An ``apply`` that adds one to the collection ``count`` and notes how it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, Any], tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((dict(variables), args, kwargs))
        output = jnp.ones(3, jnp.bfloat16)
        if not kwargs.get("mutable"):
            return output
        updates = {name: {"n": jnp.ones(())} for name in kwargs["mutable"]}
        if "count" in updates:
            updates["count"] = {"n": variables["count"]["n"] + 1}
        return output, updates


def bound(train: bool = True, **settings: Any) -> tuple[BoundApply, Recorder]:
    recorder = Recorder()
    collections = {"count": {"n": jnp.zeros(())}}
    return BoundApply(recorder, collections, StepSettings(**settings), 3, train), recorder


def test_a_collection_that_is_not_passed_is_taken_from_the_state() -> None:
    apply_fn, recorder = bound()
    apply_fn({"params": 1})
    variables, _, kwargs = recorder.calls[0]
    assert variables == {"params": 1, "count": {"n": 0.0}}
    assert kwargs == {"mutable": ["count"]}


def test_a_collection_that_is_passed_is_used() -> None:
    apply_fn, recorder = bound()
    apply_fn({"params": 1, "count": {"n": jnp.float32(5.0)}})
    assert recorder.calls[0][0]["count"]["n"] == 5.0
    assert apply_fn.gathered["count"]["n"] == 6.0


def test_arguments_reach_the_model() -> None:
    apply_fn, recorder = bound()
    apply_fn({"params": 1}, "a", 2, train=True, rngs={"dropout": 3})
    assert recorder.calls[0][1] == ("a", 2)
    assert {"train": True, "rngs": {"dropout": 3}}.items() <= recorder.calls[0][2].items()


def test_updates_are_gathered_and_the_output_comes_alone() -> None:
    apply_fn, _ = bound()
    assert apply_fn({"params": 1}).shape == (3,)
    assert apply_fn.gathered == {"count": {"n": 1.0}}


def test_a_second_call_sees_the_updates_of_the_first() -> None:
    apply_fn, recorder = bound()
    apply_fn({"params": 1})
    apply_fn({"params": 1})
    assert recorder.calls[1][0]["count"]["n"] == 1.0
    assert apply_fn.gathered["count"]["n"] == 2.0


def test_an_evaluation_gathers_nothing() -> None:
    apply_fn, recorder = bound(train=False, log_intermediates=True)
    assert apply_fn({"params": 1}).shape == (3,)
    assert recorder.calls[0][2] == {}
    assert apply_fn.gathered == {}


def test_intermediates_are_gathered_on_request() -> None:
    apply_fn, recorder = bound(log_intermediates=True)
    apply_fn({"params": 1})
    assert recorder.calls[0][2]["mutable"] == ["count", "intermediates"]
    assert set(apply_fn.gathered) == {"count", "intermediates"}


def test_a_model_without_collections_is_called_as_it_is() -> None:
    recorder = Recorder()
    apply_fn = BoundApply(recorder, {}, StepSettings(), 3, True)
    apply_fn({"params": 1})
    assert recorder.calls[0][2] == {}


def test_with_mutable_the_call_is_that_of_flax() -> None:
    apply_fn, _ = bound()
    output, updates = apply_fn({"params": 1}, mutable=["count", "cache"])
    assert output.shape == (3,)
    assert set(updates) == {"count", "cache"}
    assert apply_fn.gathered == {}


def test_with_mutable_false_nothing_is_gathered() -> None:
    apply_fn, recorder = bound()
    assert apply_fn({"params": 1}, mutable=False).shape == (3,)
    assert recorder.calls[0][2] == {"mutable": False}
    assert apply_fn.gathered == {}


BF16 = PrecisionConfig(compute_dtype="bfloat16")


def test_parameters_and_inputs_are_cast_and_outputs_cast_back() -> None:
    apply_fn, recorder = bound(precision=BF16)
    x = jnp.ones((3, 2))
    output = apply_fn({"params": {"w": x}}, x, jnp.arange(3), scale=x)
    variables, args, kwargs = recorder.calls[0]
    assert variables["params"]["w"].dtype == args[0].dtype == kwargs["scale"].dtype == jnp.bfloat16
    assert args[1].dtype == jnp.int32
    assert variables["count"]["n"].dtype == jnp.float32
    assert output.dtype == jnp.float32


def test_updates_are_not_cast() -> None:
    apply_fn, _ = bound(precision=PrecisionConfig(output_dtype="float16"))
    output, updates = apply_fn({"params": {}}, mutable=["count"])
    assert (output.dtype, updates["count"]["n"].dtype) == (jnp.float16, jnp.float32)
    assert apply_fn({"params": {}}).dtype == jnp.float16
    assert apply_fn.gathered["count"]["n"].dtype == jnp.float32


def test_without_a_precision_nothing_is_cast() -> None:
    apply_fn, recorder = bound()
    assert apply_fn({"params": {}}, np.ones(2, np.float16)).dtype == jnp.bfloat16
    assert recorder.calls[0][1][0].dtype == np.float16


def test_a_model_without_the_collection_params_can_be_cast_too() -> None:
    apply_fn, recorder = bound(precision=BF16)
    apply_fn({"w": jnp.ones(2)}, jnp.ones(2))
    assert recorder.calls[0][1][0].dtype == jnp.bfloat16


def own_update_loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
    """Asks for the updates and returns them, as Flax's examples do."""
    outputs = apply_fn({"params": params}, batch["x"], train=train, mutable=["batch_stats"])
    outputs, updates = outputs
    return ((outputs - batch["y"]) ** 2).mean(-1), ({}, updates)


def checkpointed_loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
    """The same under a transformation of its own."""

    @jax.checkpoint
    def forward(params: Any, x: jax.Array) -> Any:
        return apply_fn({"params": params}, x, train=train, mutable=["batch_stats"])

    outputs, updates = forward(params, batch["x"])
    return ((outputs - batch["y"]) ** 2).mean(-1), ({}, updates)


@pytest.fixture(scope="module")
def gathered_state() -> Any:
    model = Net(batch_norm=True)
    step = jax.jit(make_train_step(example_loss, model.apply, SGD))
    return step(make_state(model, SGD), make_data(ROWS))[0]


@pytest.mark.parametrize("loss", [own_update_loss, checkpointed_loss])
def test_gathered_updates_are_those_that_flax_returns(loss: Any, gathered_state: Any) -> None:
    model = Net(batch_norm=True)
    step = jax.jit(make_train_step(loss, model.apply, SGD))
    state, _, _ = step(make_state(model, SGD), make_data(ROWS))
    assert_close(state.mutable_variables, gathered_state.mutable_variables, 1e-6)
    assert_close(state.params, gathered_state.params, 0.0, atol=1e-6)


def test_batch_statistics_are_those_of_the_batch(gathered_state: Any) -> None:
    model = Net(batch_norm=True)
    old = make_state(model, SGD)
    dense = jax.tree.map(np.asarray, old.params["Dense_0"])
    hidden = make_data(ROWS)["x"] @ dense["kernel"] + dense["bias"]
    stats = gathered_state.mutable_variables["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(stats["mean"], 0.1 * hidden.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * hidden.var(0), rtol=1e-5)


def test_an_evaluation_uses_the_running_statistics(gathered_state: Any) -> None:
    model = Net(batch_norm=True)
    window = jax.jit(make_eval_step(example_loss, model.apply))(gathered_state, make_data(ROWS))
    variables = {"params": gathered_state.params, **gathered_state.mutable_variables}
    outputs = model.apply(variables, make_data(ROWS)["x"], train=False)
    expected = np.mean((np.asarray(outputs) - make_data(ROWS)["y"]) ** 2)
    assert finish(HostWindow.fetch(window))["loss"] == pytest.approx(expected, rel=1e-6)


class Block(nn.Module):
    """One layer that sows the mean of its output."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        x = nn.tanh(nn.Dense(4)(x))
        self.sow("intermediates", "mean", x.mean())
        return x, None


class Stack(nn.Module):
    """Three scanned and rematerialized layers."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        layers = nn.scan(
            nn.remat(Block),
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            length=3,
        )
        return nn.Dense(3)(layers(name="layers")(x, None)[0])


@pytest.mark.parametrize("pieces", [1, 4])
def test_scanned_layers_give_a_metric_each(pieces: int) -> None:
    model, batch = Stack(), make_data(ROWS)
    state = make_state(model, SGD)
    settings = StepSettings(log_intermediates=True, accumulate_steps=pieces)
    _, window, _ = jax.jit(make_train_step(example_loss, model.apply, SGD, settings))(state, batch)
    metrics = finish(HostWindow.fetch(window))
    _, updates = model.apply({"params": state.params}, batch["x"], mutable=["intermediates"])
    means = updates["intermediates"]["layers"]["mean"][0]
    for index in range(3):
        expected = pytest.approx(float(means[index]), rel=1e-4, abs=1e-6)
        assert metrics[f"layers/mean_{index}_mean"] == expected


def test_intermediates_that_nobody_asked_for_are_dropped() -> None:
    def loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
        outputs, updates = apply_fn({"params": params}, batch["x"], mutable=["intermediates"])
        return ((outputs - batch["y"]) ** 2).mean(-1), ({}, updates)

    state = make_state(Net(sown=1), SGD)
    for wanted in (False, True):
        settings = StepSettings(log_intermediates=wanted)
        step = make_train_step(loss, Net(sown=1).apply, SGD, settings)
        new, window, _ = jax.eval_shape(step, state, make_data(ROWS))
        assert ("mean" in window.layout.names) == wanted
        assert new.mutable_variables == {}


@pytest.mark.parametrize(("train", "again"), [(True, True), (False, False)])
def test_a_training_step_computes_chosen_modules_again(train: bool, again: bool) -> None:
    state, x = make_state(Net(batch_norm=True), SGD), make_data(ROWS)["x"]

    def outputs(remat: tuple[str, ...]) -> Any:
        def call(params: Any) -> Any:
            settings = StepSettings(remat=remat)
            apply_fn = BoundApply(
                Net(batch_norm=True).apply, state.mutable_variables, settings, ROWS, train
            )
            return apply_fn({"params": params}, x, train=train), apply_fn.gathered

        return call

    assert ("remat2[" in str(jax.make_jaxpr(outputs(("Dense",)))(state.params))) == again
    assert_close(outputs(("Dense",))(state.params), outputs(())(state.params), 1e-6)


def test_a_model_of_no_framework_knows_the_batch_inside_of_apply() -> None:
    config = ParallelConfig(fsdp_axis_size=4)
    layout = BatchLayout.of(build_mesh(config), config)

    def apply(variables: Any, x: jax.Array) -> jax.Array:
        return constrain_batch(x @ variables["params"])

    def call(x: jax.Array, rows: int) -> Any:
        apply_fn = BoundApply(apply, {}, StepSettings(layout=layout), rows, True)
        return apply_fn({"params": jnp.ones((2, 3))}, x)

    whole = jax.device_put(jnp.ones((ROWS, 2)), layout.replicated)
    spread = jax.jit(call, static_argnums=1)(whole, ROWS)
    assert spread.sharding.is_equivalent_to(layout.sharding(ROWS), 2)
    assert "sharding_constraint" not in str(jax.make_jaxpr(call, static_argnums=1)(whole, 12))


def test_the_state_given_to_an_evaluation_stays() -> None:
    state = make_state(Net(batch_norm=True), SGD)
    before = jax.tree.map(jnp.copy, state)
    window = jax.jit(make_eval_step(example_loss, Net(batch_norm=True).apply))(
        state, make_data(ROWS)
    )
    assert isinstance(window, DeviceMetrics)
    assert_identical(state, before)
