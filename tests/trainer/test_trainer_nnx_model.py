"""Does an NNX module train as a Linen one, and as in a loop of NNX and Optax alone?"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from flax import nnx
from jax.sharding import PartitionSpec

import xtrainer as xt
from xtrainer.errors import ConfigError, LossError
from xtrainer.trainer.assemble import build_model
from xtrainer.trainer.overview import training_facts

WIDTH, STEPS = 8, 6


class Net(nnx.Module):
    """BatchNorm, dropout, a list of layers and names of axes."""

    def __init__(self, width: int = WIDTH, *, rngs: nnx.Rngs) -> None:
        names = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "fsdp"))
        self.up = nnx.Linear(4, width, use_bias=False, kernel_init=names, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(2)])
        self.down = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.dropout(nnx.relu(self.norm(self.up(x))))
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.down(x)


class Counted(nnx.Variable):
    """A collection of the user's own."""


class Plain(nnx.Module):
    """No modes; draws from a stream, counts its calls and sows on request."""

    def __init__(self, noise: float = 0.0, sows: bool = False, *, rngs: nnx.Rngs) -> None:
        self.w, self.calls = nnx.Param(jnp.ones((4, 3))), Counted(jnp.zeros(()))
        self.scale, self.rngs = nnx.data(jnp.ones(())), rngs
        self.noise, self.sows = noise, sows

    def __call__(self, x: jax.Array) -> jax.Array:
        self.calls[...] += 1
        if self.sows:
            self.sow(nnx.Intermediate, "mean", x.mean())
        if self.noise:
            x = x + self.noise * jax.random.normal(self.rngs.noise(), x.shape)
        return self.scale * (x @ self.w)


class Trainer(zoo.Classifier):
    model_class = Net


def make(**config: Any) -> Any:
    optimizer = zoo.optimizer("adam", lr=0.01)
    return zoo.make_trainer(Trainer, optimizer=optimizer, mesh=zoo.devices(1), **config)


def saving(folder: Path) -> dict[str, Any]:
    every = xt.ModelCheckpointConfig(every_n_steps=3, max_to_keep=None)
    return {"logger": zoo.file_logger(folder), "callbacks": [every]}


def train(trainer: Any, steps: int = STEPS) -> Any:
    return trainer.train_model(zoo.loader(), zoo.loader(24), num_train_steps=steps)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives a trainer after six steps, with checkpoints at the third and the sixth."""
    trainer = make(**saving(tmp_path_factory.mktemp("nnx")))
    trainer.start = zoo.host(trainer.state)
    trainer.results = train(trainer)
    return trainer


def test_it_trains_as_a_loop_of_nnx_and_optax(run: Any) -> None:
    start, model = run.start, run.model
    variables = {"params": start.params, **start.mutable_variables}
    module = model.module(
        jax.tree.map(jnp.asarray, variables), {"dropout": jax.random.key(0)}, True
    )
    optimizer = nnx.Optimizer(module, optax.adam(0.01), wrt=nnx.Param)

    @nnx.jit
    def step(module: Net, optimizer: Any, batch: xt.Batch, key: jax.Array) -> jax.Array:
        nnx.reseed(module, dropout=key)

        def loss_fn(module: Net) -> jax.Array:
            terms = optax.softmax_cross_entropy_with_integer_labels
            return terms(module(batch.inputs), batch.targets).mean()

        loss, grads = nnx.value_and_grad(loss_fn)(module)
        optimizer.update(module, grads)
        return loss

    rng, batches, losses = jax.random.wrap_key_data(jnp.asarray(start.rng)), zoo.loader(), []
    for index in range(STEPS):
        if index % len(batches) == 0:
            passing = iter(batches)
        key = jax.random.fold_in(jax.random.fold_in(rng, index), 0)
        losses.append(float(step(module, optimizer, next(passing), key)))
    rows = zoo.rows_of(run.log_path, "train")
    np.testing.assert_allclose([row["loss_mean"] for row in rows.values()], losses, rtol=1e-5)
    ended = model._variables(module, lambda leaf: leaf.get_value())
    zoo.assert_close(run.state.params, ended["params"], atol=1e-5)
    zoo.assert_close(run.state.mutable_variables["batch_stats"], ended["batch_stats"], atol=1e-5)
    module.eval()
    logits = np.asarray(module(zoo.classification_data(24).inputs))
    accuracy = np.mean(logits.argmax(-1) == zoo.classification_data(24).targets)
    assert np.isclose(run.results["val_epoch_2"]["accuracy"], accuracy)
    assert np.allclose(run.predict(zoo.loader(24)), logits, atol=1e-5)


def test_only_variables_are_in_the_state(run: Any) -> None:
    assert set(run.state.mutable_variables) == {"batch_stats"}
    assert set(run.state.params) == {"up", "norm", "layers", "down"}  # and no keys of dropout
    assert set(run.state.params["layers"]) == {"0", "1"}
    assert "layers/1/kernel" in run.tabulate_params()


def test_a_run_is_said_to_train_the_class_of_the_module(run: Any) -> None:
    assert training_facts(run, 1, None, None, 4, {})["model"] == "Net"


def test_a_resumed_run_ends_bit_for_bit_as_one_that_was_not_stopped(
    run: Any, tmp_path: Path
) -> None:
    first = make(**saving(tmp_path))
    train(first, 3)
    second = make(**saving(tmp_path))
    second.load_model()
    assert second.global_step == 3
    train(second)
    zoo.assert_same(second.state, run.state)


def test_a_finished_run_is_evaluated_from_its_folder(run: Any) -> None:
    again = Trainer.load_from_checkpoint(run.log_path)
    assert again.eval_model(zoo.loader(24)) == pytest.approx(run.results["val_epoch_2"], rel=1e-5)


def test_names_of_axes_lay_out_parameters() -> None:
    parallel = xt.ParallelConfig(fsdp_axis_size=8)
    with xt.trainer.shapes_only():
        trainer = zoo.make_trainer(Trainer, parallel=parallel)
    assert trainer.state.params["up"]["kernel"].sharding.spec == PartitionSpec(None, "fsdp")


def test_it_is_a_model_of_the_pure_functions() -> None:
    model = xt.NNXModel(Plain)
    state = xt.init_state(
        lambda x, rng: model.init({"params": rng}, x), jnp.ones((4, 4)), optax.sgd(0.1)
    )
    assert set(state.mutable_variables) == {"Counted", "arrays"}

    def loss(params, apply_fn, batch, rng, train=True):
        return apply_fn({"params": params}, batch, train=train).mean(), ({}, {})

    step = jax.jit(xt.make_train_step(loss, model.apply, optax.sgd(0.1), xt.StepSettings()))
    for _ in range(2):
        state, *_ = step(state, jnp.ones((4, 4)))
    assert state.mutable_variables["Counted"]["calls"] == 2
    np.testing.assert_allclose(state.params["w"], 1 - 2 * 0.1 / 3, rtol=1e-6)


def test_a_stream_draws_by_the_key_it_is_given() -> None:
    model = xt.NNXModel(Plain, noise=1.0)
    variables, x = model.init({"params": jax.random.key(0)}), jnp.zeros((1, 4))
    drawn = [
        model.apply(variables, x, rngs={"default": jax.random.key(seed)}) for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.allclose(drawn[0], drawn[2])


def test_a_stream_without_a_key_is_an_error_when_it_is_drawn_from() -> None:
    quiet, loud = xt.NNXModel(Plain), xt.NNXModel(Plain, noise=1.0)
    variables = quiet.init({"params": jax.random.key(0)})
    quiet.apply(variables, jnp.zeros((1, 4)))
    with pytest.raises(LossError, match=r"stream 'default', .* rngs=\{'default': rng\}"):
        loud.apply(variables, jnp.zeros((1, 4)), rngs={"dropout": jax.random.key(0)})


def test_sown_values_are_intermediates() -> None:
    model = xt.NNXModel(Plain, sows=True)
    variables = model.init({"params": jax.random.key(0)})
    _, updates = model.apply(variables, jnp.ones((2, 4)), mutable=["intermediates"])
    assert updates == {"intermediates": {"mean": (1.0,)}}
    assert model.apply(variables, jnp.ones((2, 4))).shape == (2, 3)  # without a warning of NNX


def test_a_module_with_dropout_must_be_told_whether_it_is_trained() -> None:
    model = xt.NNXModel(Net)
    variables = model.init({"params": jax.random.key(0)})
    with pytest.raises(LossError, match="Net has layers that differ in training .* train=train"):
        model.apply(variables, jnp.ones((2, 4)))


def test_a_missing_collection_is_named() -> None:
    model = xt.NNXModel(Net)
    params = model.init({"params": jax.random.key(0)})["params"]
    with pytest.raises(LossError, match=r"'batch_stats/norm/mean': .* \['params'\] without it"):
        model.apply({"params": params}, jnp.ones((2, 4)), train=False)


def test_an_array_that_nnx_would_lose_is_an_error() -> None:
    class Table(nnx.Module):
        def __init__(self) -> None:
            self.inner = nnx.List([Net(rngs=nnx.Rngs(0))])
            self.inner[0].table = jnp.arange(3.0)

    with pytest.raises(ConfigError, match=r"Table\.inner\.0\.table, expected a variable"):
        xt.NNXModel(Table)


@pytest.mark.parametrize(
    ("model_class", "arguments", "message"),
    [
        (Net, {"widht": 3}, "Net refuses its arguments: .*'widht'"),
        (zoo.MLP, {"widht": 3}, "MLP refuses its arguments: .*'widht'"),
        (lambda: Plain(rngs=nnx.Rngs(0)), None, "returns an NNX module Plain, .*model_class=Plain"),
    ],
)
def test_a_model_that_cannot_be_made_is_a_mistake_of_the_config(
    model_class: Any, arguments: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(xt.ModelConfig(model_class=model_class, model_config=arguments))


def test_a_linen_model_is_not_wrapped() -> None:
    assert isinstance(build_model(xt.ModelConfig(model_class=zoo.MLP)), zoo.MLP)
