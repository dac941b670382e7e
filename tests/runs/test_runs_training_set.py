"""Is the training set evaluated like any other, and is training what it would be without that?"""

from pathlib import Path
from typing import Any

import grain
import numpy as np
import probes
import pytest

import xtrainer as xt
from xtrainer.data import LoaderSource
from xtrainer.errors import ConfigError, LoaderError

VAL = probes.numbered(1, first=100)


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    """Gives a trainer that is compiled once for all tests of this file."""
    return probes.Repeatable(probes.traced())


def arrays() -> xt.ArrayLoader:
    """Returns a loader of ten rows, shuffled, whose last batch of each pass is left out."""
    return xt.ArrayLoader(probes.examples(10), batch_size=4, shuffle=True, drop_last=True)


class Rows:
    """The same rows as samples."""

    def __init__(self) -> None:
        self.rows = probes.examples(10)

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> probes.Batch:
        return {name: array[index] for name, array in self.rows.items()}


class Noise(grain.transforms.RandomMap):
    """Changes the inputs of a sample anew each time it is read."""

    def random_map(self, element: Any, rng: np.random.Generator) -> Any:
        """Returns the sample with noise."""
        noise = rng.normal(size=4).astype(np.float32)
        return {**element, "inputs": element["inputs"] + noise}


def samples(**kwargs: Any) -> xt.GrainLoader:
    return xt.GrainLoader(Rows(), 4, shuffle=True, num_threads=0, **kwargs)


# The loaders.


def test_arrays_are_read_whole_and_in_order_while_training_stands_still() -> None:
    loader = arrays()
    training = iter(loader)
    next(training)
    before = loader.get_state()
    for _ in range(2):
        ids = [batch["ids"].tolist() for batch in loader.for_evaluation()]  # type: ignore[index]
        assert ids == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert loader.get_state() == before
    assert len(list(training)) == 1


def test_samples_are_read_whole_and_in_order_with_the_same_noise_each_time() -> None:
    loader = samples(transforms=[Noise()], drop_remainder=True, num_epochs=None)
    next(iter(loader))
    before, evaluation = loader.get_state(), loader.for_evaluation()
    first, second = list(evaluation), list(evaluation)
    assert [batch["ids"].tolist() for batch in first] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one["inputs"], other["inputs"])
    assert len(evaluation) == 3 and loader.get_state() == before
    next(iter(evaluation))  # broken off
    assert len(list(evaluation)) == 3


def test_samples_without_an_end_cannot_be_evaluated_as_a_whole() -> None:
    endless = xt.GrainLoader(grain.MapDataset.source(Rows()).repeat(), 4, num_threads=0)
    with pytest.raises(LoaderError, match="without an end"):
        endless.for_evaluation()


# In a run.


@pytest.mark.parametrize(
    "make", [lambda: probes.numbered(3), arrays, samples], ids=["list", "arrays", "grain"]
)
def test_training_is_bit_for_bit_what_it_is_without(stage: probes.Repeatable, make: Any) -> None:
    plain = stage.begin(check_val_every_n_steps=2)
    plain.train_model(make(), VAL, num_epochs=3)
    expected, rows = probes.learned(plain), plain.logger.rows()
    trainer = stage.begin(evaluate_training_set=True, check_val_every_n_steps=2)
    trainer.train_model(make(), VAL, num_epochs=3)
    probes.assert_same_course(probes.learned(trainer), expected)
    assert trainer.logger.rows() == rows


def test_its_metrics_are_those_of_the_state_at_each_validation(stage: probes.Repeatable) -> None:
    trainer = stage.begin(evaluate_training_set=True, every=2)
    results = trainer.train_model(arrays(), VAL, num_epochs=2)
    whole = xt.ArrayLoader(probes.examples(10), batch_size=4)
    by_hand = trainer.eval_model({"train": whole})
    last = results["val_epoch_2"]
    assert last["train_loss"] == by_hand["train_loss"] and last["train_id"] == 4.5
    assert set(last) == {"loss", "id", "train_loss", "train_id"}  # the other set keeps its names
    assert trainer.history.series("val", "train_loss")[4] == last["train_loss"]
    gathered = trainer.history.series("train_epoch", "loss")
    assert gathered[4] != last["train_loss"]  # that of the steps, with dropout


def test_without_it_there_are_the_metrics_gathered_while_training(
    stage: probes.Repeatable,
) -> None:
    trainer = stage.begin()
    results = trainer.train_model(arrays(), VAL, num_epochs=2)
    assert set(results["val_epoch_2"]) == {"loss", "id"}
    assert list(trainer.history.series("train_epoch", "loss")) == [2, 4]


def test_it_is_a_validation_by_itself(stage: probes.Repeatable) -> None:
    trainer = stage.begin(evaluate_training_set=True)
    results = trainer.train_model(probes.numbered(2), num_epochs=2)
    assert list(results) == ["val_epoch_1", "val_epoch_2"]
    assert set(results["val_epoch_2"]) == {"train_loss", "train_id"}
    assert trainer.has_validation and trainer.progress.validations == 2


def test_it_stands_beside_named_sets_and_has_its_column(stage: probes.Repeatable) -> None:
    table = xt.MetricsTableConfig(metrics=("loss",))
    trainer = stage.begin(table, evaluate_training_set=True)
    texts: list[str] = []
    trainer.logger.log_text = lambda key, text, step: texts.append(text)
    trainer.train_model(probes.numbered(2), {"near": VAL, "far": VAL}, num_epochs=1)
    assert texts[0].splitlines()[1].split() == ["metric", "train", "near", "far"]
    assert list(trainer.history["val"][0].metrics)[:2] == ["train_loss", "train_id"]


def test_a_loader_of_one_s_own_says_how_it_is_evaluated(stage: probes.Repeatable) -> None:
    class Own:
        def __iter__(self) -> Any:
            return iter(probes.numbered(2))

        def for_evaluation(self) -> Any:
            return probes.numbered(1, first=50)

    trainer = stage.begin(evaluate_training_set=True)
    results = trainer.train_model(Own(), num_epochs=1)
    assert results["val_epoch_1"]["train_id"] == 50.0


@pytest.mark.parametrize("kind", ["iterator", "its own state"])
def test_a_loader_that_would_be_moved_is_refused(stage: probes.Repeatable, kind: str) -> None:
    class Stateful:
        def __iter__(self) -> Any:
            return iter(probes.numbered(2))

        def get_state(self) -> Any:
            return {}

        def set_state(self, state: Any) -> None: ...

    loader = probes.generate(probes.numbered(2)) if kind == "iterator" else Stateful()
    trainer = stage.begin(evaluate_training_set=True)
    with pytest.raises(ConfigError, match="evaluate_training_set: found a .* for_evaluation"):
        trainer.train_model(loader, VAL, num_epochs=1)
    assert trainer.global_step == 0


def test_a_set_of_that_name_is_refused(stage: probes.Repeatable) -> None:
    trainer = stage.begin(evaluate_training_set=True)
    with pytest.raises(ConfigError, match="a validation set called 'train'"):
        trainer.train_model(probes.numbered(2), {"train": VAL}, num_epochs=1)


def test_a_resumed_run_goes_on_as_if_it_had_not_ended(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    checkpoint = xt.ModelCheckpointConfig(log_path=str(tmp_path))
    whole = stage.begin(evaluate_training_set=True)
    expected = whole.train_model(arrays(), VAL, num_epochs=3)["val_epoch_3"]
    course = probes.learned(whole)
    stage.begin(probes.stop_at(3), checkpoint, evaluate_training_set=True).train_model(
        arrays(), VAL, num_epochs=3
    )
    again = stage.begin(checkpoint, evaluate_training_set=True)
    assert again.train_model(arrays(), VAL, num_epochs=3)["val_epoch_3"] == expected
    probes.assert_same_course(probes.learned(again), course)


def test_a_source_of_a_loader_is_looked_through(stage: probes.Repeatable) -> None:
    trainer = stage.begin(evaluate_training_set=True)
    results = trainer.train_model(LoaderSource(probes.numbered(2), "train"), num_epochs=1)
    assert results["val_epoch_1"]["train_id"] == 1.5
