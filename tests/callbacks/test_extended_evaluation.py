"""Further metrics at a validation."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.errors import LoaderError

VAL = probes.numbered(2, first=100)
EXTRA = [probes.one(7, 4), probes.one(8, 3)]


class Largest(xt.ExtendedEvaluation):
    """The mean of the largest logit, and of its square."""

    loaders: Mapping[str, Iterable[Any]] | None = None

    def loss_function(self, params, apply_fn, batch, rng, train=False):  # type: ignore[override]
        largest = apply_fn({"params": params}, batch["inputs"], train=False).max(-1)
        return largest, ({"square": largest**2}, {})

    def get_loaders(self) -> Mapping[str, Iterable[Any]]:
        return super().get_loaders() if self.loaders is None else self.loaders


def largest(prefix: str = "extended", **config: Any) -> Any:
    return lambda trainer: Largest(xt.ExtendedEvaluationConfig(prefix=prefix, **config), trainer)


def expected(trainer: Any, batches: list[probes.Batch]) -> tuple[float, float]:
    variables = {"params": trainer.state.params, **trainer.state.mutable_variables}
    logits = [trainer.model.apply(variables, batch["inputs"], train=False) for batch in batches]
    values = np.concatenate([np.asarray(each, np.float64).max(-1) for each in logits])
    return values.mean(), (values**2).mean()


def test_metrics_of_another_loss_equal_numpy(stage: probes.Repeatable) -> None:
    trainer = stage.begin(largest("more"))
    trainer.set_dataset(EXTRA)
    results = trainer.train_model(probes.numbered(2), VAL, num_epochs=1)
    found = results["val_epoch_1"]
    loss, square = expected(trainer, EXTRA)
    assert found["more_loss"] == pytest.approx(loss, rel=1e-6)
    assert found["more_square"] == pytest.approx(square, rel=1e-6)


def test_the_metrics_of_the_validation_stay_what_they_are(stage: probes.Repeatable) -> None:
    plain = stage.begin().train_model(probes.numbered(2), VAL, num_epochs=1)
    trainer = stage.begin(largest())
    trainer.set_dataset(EXTRA)
    found = trainer.train_model(probes.numbered(2), VAL, num_epochs=1)
    for name, value in plain["val_epoch_1"].items():
        assert found["val_epoch_1"][name] == value


def test_added_metrics_are_logged(stage: probes.Repeatable) -> None:
    trainer = stage.begin(largest())
    trainer.set_dataset(EXTRA)
    results = trainer.train_model(probes.numbered(2), VAL, num_epochs=2)
    logged = trainer.logger.column("extended_loss", "val")
    assert logged == [result["extended_loss"] for result in results.values()]


def test_several_datasets_have_their_names_in_their_metrics(stage: probes.Repeatable) -> None:
    trainer = stage.begin(largest("more"))
    trainer.callbacks[0].loaders = {"left": EXTRA[:1], "right": EXTRA[1:]}
    found = trainer.train_model(probes.numbered(2), VAL, num_epochs=1)["val_epoch_1"]
    for name, batches in trainer.callbacks[0].loaders.items():
        loss, square = expected(trainer, batches)
        assert found[f"more_{name}_loss"] == pytest.approx(loss, rel=1e-6)
        assert found[f"more_{name}_square"] == pytest.approx(square, rel=1e-6)


def test_a_shared_dataset_may_be_several(stage: probes.Repeatable) -> None:
    trainer = stage.begin(largest())
    trainer.set_dataset({"a": EXTRA, "b": VAL})
    found = trainer.train_model(probes.numbered(1), VAL, num_epochs=1)["val_epoch_1"]
    assert {"extended_a_loss", "extended_b_loss"} <= found.keys()


def test_only_due_validations_are_extended(stage: probes.Repeatable) -> None:
    trainer = stage.begin(largest(every_n_epochs=2))
    trainer.set_dataset(EXTRA)
    results = trainer.train_model(probes.numbered(2), VAL, num_epochs=3)
    extended = [name for name, metrics in results.items() if "extended_loss" in metrics]
    assert extended == ["val_epoch_2"]


def test_callbacks_further_down_can_monitor_what_was_added(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    saving = xt.ModelCheckpointConfig(monitor="extended_loss", log_path=str(tmp_path), mode="max")
    trainer = stage.begin(largest(), saving)
    trainer.set_dataset(EXTRA)
    results = trainer.train_model(probes.numbered(2), VAL, num_epochs=3)
    best = max(result["extended_loss"] for result in results.values())
    assert trainer.progress.best["extended_loss"]["value"] == best


def test_another_loss_is_compiled_once(stage: probes.Repeatable) -> None:
    trainer = stage.begin(largest())
    trainer.set_dataset(EXTRA)
    with zoo.compilations() as compiled:
        trainer.train_model(probes.numbered(2), VAL, num_epochs=3)
    assert compiled["eval_step"] <= 2
    assert len(trainer.logger.rows("val")) == 3
    with zoo.compilations() as compiled:
        trainer.train_model(probes.numbered(2), VAL, num_epochs=5)
    assert compiled["eval_step"] == 0


def test_without_a_dataset_there_is_an_error_that_says_what_to_do(
    stage: probes.Repeatable,
) -> None:
    with pytest.raises(LoaderError, match=r"Largest has no data.*set_dataset\(loader\)"):
        stage.begin(largest()).train_model(probes.numbered(1), VAL, num_epochs=1)


def test_an_empty_dataset_is_an_error_with_its_name(stage: probes.Repeatable) -> None:
    trainer = stage.begin(largest("more"))
    trainer.set_dataset({"hard": []})
    with pytest.raises(LoaderError, match="'more_hard' loader gave no batch"):
        trainer.train_model(probes.numbered(1), VAL, num_epochs=1)


def test_the_loss_must_be_defined(stage: probes.Repeatable) -> None:
    base = lambda trainer: xt.ExtendedEvaluation(xt.ExtendedEvaluationConfig(), trainer)  # noqa: E731
    trainer = stage.begin(base)
    trainer.set_dataset(EXTRA)
    with pytest.raises(TypeError, match="ExtendedEvaluation must define loss_function"):
        trainer.train_model(probes.numbered(1), VAL, num_epochs=1)
