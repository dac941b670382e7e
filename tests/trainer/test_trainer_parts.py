"""What is a trainer made of, and can each part be replaced by overriding its method?"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from jax.sharding import AxisType

import xtrainer as xt
from xtrainer.errors import BatchError, MeshError
from xtrainer.loop import StopReason


@pytest.fixture(scope="module")
def trainer() -> Any:
    """Gives a trainer on one device that no test changes for long."""
    return zoo.make_trainer(mesh=zoo.devices(1))


@pytest.fixture(scope="module")
def two_steps() -> Any:
    """Gives the parameters after two steps on one batch."""
    trainer = zoo.make_trainer(mesh=zoo.devices(1))
    trainer.train_model(zoo.loader(16), num_train_steps=2)
    return zoo.host(trainer.state.params)


def test_a_trainer_without_a_loss_says_what_to_define() -> None:
    class Empty(xt.TrainerModule):
        model_class = zoo.MLP

    with pytest.raises(TypeError, match=r"Empty must define loss_function"):
        zoo.make_trainer(Empty, mesh=zoo.devices(1))


def test_leaves_of_the_example_with_different_leading_axes_are_an_error() -> None:
    batch = xt.Batch(inputs=np.zeros((8, 4)), targets=np.zeros(7))
    with pytest.raises(BatchError, match=r"different leading axes \(inputs: \(8, 4\), targets"):
        zoo.make_trainer(batch=batch, mesh=zoo.devices(1))


def test_a_mesh_with_explicit_axes_is_an_error() -> None:
    mesh = jax.make_mesh((8,), ("dp",), (AxisType.Explicit,))
    with pytest.raises(MeshError, match=r"The mesh axes \['dp'\] are of type Explicit"):
        zoo.make_trainer(mesh=mesh)


def test_a_mesh_with_the_data_axis_alone_is_enough() -> None:
    mesh = jax.make_mesh((8,), ("dp",), (AxisType.Auto,))
    trainer = zoo.make_trainer(mesh=mesh)
    trainer.train_model(zoo.loader(32), num_epochs=1)
    assert trainer.global_step == 2


def test_a_ready_transformation_stands_for_an_optimizer_config(
    trainer: Any, two_steps: Any
) -> None:
    other = zoo.make_trainer(mesh=zoo.devices(1), optimizer=optax.sgd(0.1))
    other.train_model(zoo.loader(16), num_train_steps=2)
    zoo.assert_close(other.state.params, two_steps)
    assert other.learning_rate(1) is None
    assert trainer.learning_rate(1) == pytest.approx(0.1)


def test_the_learning_rate_of_a_step_is_that_of_its_update() -> None:
    schedule = xt.SchedulerConfig(name="linear", lr=1.0, decay_steps=10)
    trainer = zoo.make_trainer(
        mesh=zoo.devices(1), optimizer=xt.OptimizerConfig(name="sgd", scheduler=schedule)
    )
    assert [trainer.learning_rate(step) for step in (1, 2, 11)] == pytest.approx([1.0, 0.9, 0.0])
    trainer.progress.skipped = 1  # the optimizer has not counted it
    assert trainer.learning_rate(2) == pytest.approx(1.0)


def test_the_learning_rate_waits_for_no_accelerator(
    trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    schedule = lambda updates: seen.append(jax.config.jax_default_device) or 0.5  # noqa: E731
    monkeypatch.setattr(trainer, "lr_schedule", schedule)
    assert trainer.learning_rate(1) == 0.5
    assert [place.platform for place in seen] == ["cpu"]


def test_the_first_reason_to_stop_is_kept(trainer: Any) -> None:
    trainer.stop_reason = None
    trainer.request_stop(detail="enough")
    trainer.request_stop(StopReason.NONFINITE, "too late")
    assert (trainer.stop_reason, trainer.stop_detail) == (StopReason.REQUESTED, "enough")


def test_the_run_folder_is_absolute_and_inside_the_log_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    logger = xt.LoggerConfig(log_path="runs", run_name="a")
    trainer = zoo.make_trainer(mesh=zoo.devices(1), logger=logger)
    assert trainer.log_path == tmp_path / "runs" / "a"
    assert list(tmp_path.iterdir()) == []  # nothing is written before the first row


def test_nothing_is_compiled_or_written_by_a_second_request_for_functions(trainer: Any) -> None:
    old = trainer.compiled_train_step
    with zoo.compilations() as compiled:
        trainer.create_jitted_functions()
    assert trainer.compiled_train_step is not old
    assert not {"train_step", "eval_step"} & set(compiled)


# Seams.


class Pictures(zoo.Classifier):
    """Batches with the key ``image``, a model with keys of its own."""

    @staticmethod
    def batch_to_input(batch: Any) -> Any:
        return batch["image"].reshape(batch["image"].shape[0], -1)

    @staticmethod
    def get_model_rng(rng: Any) -> dict[str, Any]:
        return {"params": jax.random.fold_in(rng, 5)}

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        logits = apply_fn({"params": params}, self.batch_to_input(batch), train=train)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), ({}, {})


def test_batch_to_input_and_get_model_rng_can_be_replaced(trainer: Any) -> None:
    data = zoo.classification_data(32)
    batch = {"image": data.inputs.reshape(32, 2, 2), "label": data.targets}
    other = zoo.make_trainer(Pictures, batch=batch, mesh=zoo.devices(1))
    kernels = [each.state.params["Dense_0"]["kernel"] for each in (other, trainer)]
    assert kernels[0].shape == kernels[1].shape
    assert not np.array_equal(*kernels)
    other.train_model(xt.ArrayLoader(batch, 16), num_epochs=1)
    assert other.global_step == 2


class Replaced(zoo.Classifier):
    """Replaces the model, the optimizer and the initial variables."""

    def build_model(self, model_config: xt.ModelConfig) -> None:
        self.model = zoo.MLP(width=3)

    def init_optimizer(self, optimizer_config: Any) -> None:
        self.optimizer, self.lr_schedule = optax.sgd(0.0), None

    def run_model_init(self, exmp_input: Any, init_rng: Any) -> Any:
        return jax.tree.map(jnp.ones_like, super().run_model_init(exmp_input, init_rng))


def test_model_optimizer_and_initial_variables_can_be_replaced() -> None:
    trainer = zoo.make_trainer(Replaced, mesh=zoo.devices(1))
    trainer.train_model(zoo.loader(16), num_epochs=1)
    assert trainer.get_num_params() == 4 * 3 + 3 + 3 * 3 + 3
    zoo.assert_same(trainer.state.params, jax.tree.map(np.ones_like, trainer.state.params))


class Doubled(zoo.Classifier):
    """Takes every batch twice, in one step of its own."""

    def create_training_step_function(self, settings: Any = None) -> Any:
        step = super().create_training_step_function(settings)

        def train_step(state: Any, batch: Any, mask: Any, metrics: Any) -> Any:
            state, metrics, _ = step(state, batch, mask, metrics)
            state, metrics, report = step(state, batch, mask, metrics)
            return state, metrics, report.at[0].set(state.step)

        return train_step


def test_the_training_step_can_be_replaced(two_steps: Any) -> None:
    trainer = zoo.make_trainer(Doubled, mesh=zoo.devices(1))
    trainer.train_model(zoo.loader(16), num_train_steps=1)
    zoo.assert_close(trainer.state.params, two_steps)


def test_callbacks_are_given_the_data_module(trainer: Any) -> None:
    module = object()
    trainer.init_callbacks([xt.LearningRateMonitorConfig()], module)
    assert [callback.data_module for callback in trainer.callbacks] == [module]
