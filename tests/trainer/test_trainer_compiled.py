"""Do the compiled steps of a trainer have the settings, the layout and the padding they should?"""

from typing import Any

import jax
import pytest
import zoo

import xtrainer as xt
from xtrainer.step import count_flops
from xtrainer.trainer.compiled import loss_terms, shardings_of, step_settings

CONFIG = {
    "gradient_accumulate_steps": 2,
    "gradient_accumulate_scan": False,
    "nonfinite_policy": "skip",
    "max_consecutive_nonfinite": 3,
    "default_train_log_modes": ["max"],
    "intermediates_log_modes": ["min"],
    "log_intermediates": True,
    "log_grad_norm": False,
    "log_grad_norm_per_param": True,
    "log_param_norm": False,
    "log_param_norm_per_param": True,
    "seed_eval": 7,
    "precision": xt.PrecisionConfig(compute_dtype="bfloat16"),
}


@pytest.fixture(scope="module")
def trainer() -> Any:
    return zoo.make_trainer(mesh=zoo.devices(2), **CONFIG)


def test_the_settings_of_the_steps_are_those_of_the_config(trainer: Any) -> None:
    settings = step_settings(trainer.trainer_config, trainer.batch_layout, trainer.state)
    assert (settings.accumulate_steps, settings.accumulate_scan) == (2, False)
    assert (settings.nonfinite_limit, settings.seed_eval) == (3, 7)
    assert (settings.train_log_modes, settings.intermediates_log_modes) == (("max",), ("min",))
    norms = [settings.log_grad_norm, settings.log_param_norm]
    assert norms == [False, False] and settings.log_intermediates
    assert settings.log_grad_norm_per_param and settings.log_param_norm_per_param
    assert settings.precision.compute_dtype == "bfloat16"
    assert settings.layout is trainer.batch_layout
    assert settings.param_shardings == shardings_of(trainer.state.params)
    assert settings.remat == ()


def test_the_settings_name_the_modules_to_compute_again(trainer: Any) -> None:
    parts = (trainer.trainer_config, trainer.batch_layout, trainer.state)
    parallel = xt.ParallelConfig(remat=("Block", "head"), remat_policy="dots_saveable")
    settings = step_settings(*parts, parallel=parallel)
    assert (settings.remat, settings.remat_policy) == (("Block", "head"), "dots_saveable")


@pytest.mark.parametrize(
    ("trainer_class", "model", "train", "evaluation"),
    [
        (zoo.Classifier, {}, 16, 16),
        (zoo.ScalarClassifier, {}, 5, 5),
        (zoo.PairClassifier, {}, 5, 5),
        # Padded rows would change the batch statistics, and through them every other row.
        (zoo.Classifier, {"batch_norm": True}, 5, 16),
    ],
)
def test_a_smaller_batch_is_padded_where_that_changes_nothing(
    trainer_class: type, model: dict[str, Any], train: int, evaluation: int
) -> None:
    trainer = zoo.make_trainer(trainer_class, model=model, mesh=zoo.devices(1))
    rows = []
    for prepare in (trainer.prepare_train_batch, trainer.prepare_eval_batch):
        prepare(zoo.classification_data(16))
        rows.append(prepare(zoo.classification_data(5)).rows)
    assert rows == [train, evaluation]


def test_the_terms_of_a_loss_are_known_by_their_shapes_alone(trainer: Any) -> None:
    settings = trainer.step_settings()
    spec = jax.eval_shape(lambda: zoo.classification_data(6))
    parts = (trainer.loss_function, trainer.model.apply, settings, trainer.state, spec)
    terms = loss_terms(*parts, train=True)
    assert terms.layout.modes == (("max",), ("max",))
    assert isinstance(terms.value, jax.ShapeDtypeStruct)
    assert loss_terms(*parts, train=False).layout.modes == (("mean_nopostfix",),) * 2


@pytest.mark.parametrize("mesh", [1, 8])
@pytest.mark.parametrize("pieces", [1, 4])
def test_the_operations_of_a_step_are_those_of_the_model(mesh: int, pieces: int) -> None:
    trainer = zoo.make_trainer(
        model={"width": 64},
        batch=zoo.classification_data(8),
        mesh=zoo.devices(mesh),
        parallel=xt.ParallelConfig(remat=("MLP",)),
        gradient_accumulate_steps=pieces,
    )
    few = trainer.step_flops()
    trainer.progress.batch_rows = 4096
    products = 2 * 4096 * (4 * 64 + 64 * 3) * 2 + 2 * 4096 * 64 * 3
    elements = 4096 * 64 * 4
    assert products < trainer.step_flops() < 1.05 * (products + elements)
    assert few < trainer.step_flops() / 100
    step = trainer.create_training_step_function()
    again = count_flops(step, trainer.state, zoo.classification_data(4096))
    assert again > 1.1 * trainer.step_flops()  # what is computed again is not work of the model
