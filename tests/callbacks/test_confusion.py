"""Matrices of confusion are exact: equal to scikit-learn's, without masks and padding."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import probes
import pytest
import zoo
from sklearn.metrics import confusion_matrix

import xtrainer as xt
from xtrainer.callbacks import ConfusionMatrix, draw_matrix
from xtrainer.errors import MetricError

CLASSES = 3
CONFIG = xt.ConfusionMatrixConfig(num_classes=CLASSES)


class Told(probes.Memory):
    """Keeps images and tables too."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[tuple[str, int, np.ndarray]] = []
        self.tables: list[tuple[str, int, Any, Any]] = []

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        """Keeps one."""
        self.images.append((key, step, image))

    def log_table(self, key: str, columns: Any, rows: Any, step: int) -> None:
        """Keeps one."""
        self.tables.append((key, step, columns, rows))


def predictions(trainer: Any, batch: probes.Batch) -> np.ndarray:
    state = trainer.state
    variables = {"params": state.params, **state.mutable_variables}
    return np.asarray(trainer.model.apply(variables, batch["inputs"], train=False)).argmax(-1)


def expected(trainer: Any, batches: list[probes.Batch]) -> np.ndarray:
    targets = np.concatenate([batch["targets"] for batch in batches])
    found = np.concatenate([predictions(trainer, batch) for batch in batches])
    return confusion_matrix(targets, found, labels=range(CLASSES))


def told(stage: probes.Repeatable, config: xt.ConfusionMatrixConfig = CONFIG) -> Any:
    trainer = stage.begin(config)
    trainer.logger = Told()
    return trainer


def test_a_validation_is_counted_as_scikit_learn_does(stage: probes.Repeatable) -> None:
    sets = [probes.one(100, 4), probes.one(101, 4), probes.one(102, 3)]  # the last one is padded
    trainer = told(stage)
    trainer.train_model(probes.numbered(4), sets, num_epochs=2)
    matrix = trainer.callbacks[0].newest["val"]
    assert matrix.dtype == np.int64 and matrix.sum() == 11
    np.testing.assert_array_equal(matrix, expected(trainer, sets))
    assert [(key, step) for key, step, *_ in trainer.logger.tables] == [
        ("confusion_matrix/val", 4),
        ("confusion_matrix/val", 8),
    ]
    _, _, columns, rows = trainer.logger.tables[-1]
    assert columns == ["target", "0", "1", "2"]
    assert rows == [[str(i), *matrix[i].tolist()] for i in range(CLASSES)]
    key, step, image = trainer.logger.images[-1]
    assert (key, step) == ("confusion_matrix/val", 8)
    np.testing.assert_array_equal(image, draw_matrix(matrix))


def test_each_named_set_has_its_matrix(stage: probes.Repeatable) -> None:
    sets = {"near": [probes.one(100, 4)], "far": [probes.one(101, 3)]}
    trainer = told(stage)
    trainer.train_model(probes.numbered(1), sets, num_epochs=1)
    for name, batches in sets.items():
        np.testing.assert_array_equal(trainer.callbacks[0].newest[name], expected(trainer, batches))
    assert [key for key, *_ in trainer.logger.images] == [f"confusion_matrix/{n}" for n in sets]


def test_metrics_and_training_stay_what_they_are(stage: probes.Repeatable) -> None:
    val = [probes.one(100, 4)]
    plain = stage.begin()
    results, course = (
        plain.train_model(probes.numbered(2), val, num_epochs=2),
        probes.learned(plain),
    )
    trainer = told(stage)
    assert trainer.train_model(probes.numbered(2), val, num_epochs=2) == results
    probes.assert_same_course(probes.learned(trainer), course)


def test_it_is_compiled_once(stage: probes.Repeatable) -> None:
    trainer = told(stage)
    with zoo.compilations() as compiled:
        trainer.train_model(probes.numbered(1), [probes.one(9)], num_epochs=3)
    assert compiled["eval_step"] <= 2  # the evaluation's own, where it is not there yet, and this


def test_masked_tokens_and_targets_that_are_no_class_are_left_out() -> None:
    """Of a tagger with a mask per token, on a mesh of eight, with a ragged last batch."""
    trainer = zoo.make_trainer(
        trainer_class=Tagger,
        batch=tokens(0, 16),
        model={"classes": 4},
        parallel=xt.ParallelConfig(),
    )
    batches = [tokens(1, 16), tokens(2, 16), tokens(3, 5)]
    callback = ConfusionMatrix(xt.ConfusionMatrixConfig(num_classes=4), trainer)
    matrix = callback.count(batches)
    wanted = np.zeros((4, 4), np.int64)
    for batch in batches:
        logits = trainer.model.apply({"params": trainer.state.params}, batch.inputs)
        for t, p, m in zip(
            batch.targets.ravel(), np.asarray(logits).argmax(-1).ravel(), batch.mask.ravel(),
            strict=True,
        ):  # fmt: skip
            if m and t >= 0:
                wanted[t, p] += 1
    np.testing.assert_array_equal(matrix, wanted)
    assert 0 < matrix.sum() < sum(batch.targets.size for batch in batches)


def tokens(seed: int, rows: int) -> xt.Batch:
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(rows, 6, 4)).astype(np.float32)
    targets = generator.integers(-1, 4, size=(rows, 6)).astype(np.int32)
    return xt.Batch(inputs=inputs, targets=targets, mask=generator.random((rows, 6)) > 0.3)


class Tags(nn.Module):
    classes: int = 4

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        return nn.Dense(self.classes)(x)


class Tagger(xt.TrainerModule):
    model_class = Tags

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        logits = apply_fn({"params": params}, batch.inputs, train=train)
        targets = jnp.maximum(batch.targets, 0)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return {"value": loss, "count": batch.mask.astype(jnp.float32)}, ({}, {})


def test_its_time_is_that_of_a_validation(stage: probes.Repeatable) -> None:
    trainer = stage.begin(CONFIG)
    before = trainer.ledger.snapshot()
    trainer.callbacks[0].count([probes.one(100)])
    spent = {name: s - before[name] for name, s in trainer.ledger.snapshot().items()}
    assert spent["validation"] > 0 and spent["compile"] > 0
    assert spent["callbacks"] == 0


def test_another_way_to_classify_is_an_override(stage: probes.Repeatable) -> None:
    class ByRule(ConfusionMatrix):
        def classify(self, params: Any, apply_fn: Any, batch: Any, rng: Any) -> Any:
            rule = (batch["inputs"][:, 0] > 0).astype(jnp.int32)
            return batch["targets"], rule, batch["ids"] < 102

    trainer = stage.begin(lambda made: ByRule(CONFIG, made))
    batches = [probes.one(100), probes.one(101), probes.one(102)]
    found = trainer.callbacks[0].count(batches)
    rules = np.concatenate([(batch["inputs"][:, 0] > 0).astype(int) for batch in batches[:2]])
    targets = np.concatenate([batch["targets"] for batch in batches[:2]])
    np.testing.assert_array_equal(found, confusion_matrix(targets, rules, labels=range(CLASSES)))


def test_a_wrong_number_of_classes_is_told_with_what_was_found(stage: probes.Repeatable) -> None:
    trainer = told(stage, xt.ConfusionMatrixConfig(num_classes=5))
    with pytest.raises(
        MetricError, match=r"outputs of float32\[4, 3\], expected .* last axis is 5"
    ):
        trainer.callbacks[0].count([probes.one(1)])


def test_targets_that_are_no_integers_are_refused(stage: probes.Repeatable) -> None:
    class Floats(ConfusionMatrix):
        def classify(self, params: Any, apply_fn: Any, batch: Any, rng: Any) -> Any:
            return batch["ids"], batch["targets"], None

    trainer = stage.begin(lambda made: Floats(CONFIG, made))
    with pytest.raises(MetricError, match=r"targets of float32\[4\] and predictions of int32\[4\]"):
        trainer.callbacks[0].count([probes.one(1)])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "num_classes: found None, with 0 class_names; expected 2 to 256"),
        ({"num_classes": 257}, "num_classes: found 257"),
        ({"num_classes": 3, "class_names": ("a", "b")}, "class_names: found 2 of them"),
        ({"num_classes": 2, "main_process_only": True}, "main_process_only: found True"),
    ],
)
def test_settings_that_cannot_be_are_reported(fields: dict[str, Any], message: str) -> None:
    (problem,) = xt.ConfusionMatrixConfig(**fields).problems()
    assert message in problem


def test_a_picture_is_darker_where_more_of_a_class_is() -> None:
    image = draw_matrix(np.array([[4, 0], [1, 1]]))
    corners = [image[0, 0], image[0, -1], image[-1, 0]]
    assert [corner.tolist() for corner in corners] == [[8, 48, 107], [255] * 3, [132, 152, 181]]
    assert (draw_matrix(np.zeros((2, 2), np.int64)) == 255).all()
    assert draw_matrix(np.zeros((256, 256), np.int64)).shape == (512, 512, 3)


def test_the_numbers_are_in_the_run_folder(stage: probes.Repeatable, tmp_path: Path) -> None:
    names = ("cat", "dog", "a, b")
    trainer = stage.begin(xt.ConfusionMatrixConfig(class_names=names), folder=tmp_path)
    trainer.train_model(probes.numbered(2), [probes.one(100)], num_epochs=1)
    matrix = trainer.callbacks[0].newest["val"]
    lines = (tmp_path / "tables/confusion_matrix_val/00000002.csv").read_text().splitlines()
    assert lines[0] == 'target,cat,dog,"a, b"'
    assert lines[3] == '"a, b",' + ",".join(map(str, matrix[2]))
