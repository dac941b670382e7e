"""Does a run that goes on notice that its data are others now? It stops, or takes them."""

from pathlib import Path
from typing import Any

import numpy as np
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.checkpoint import choose_usable, read_meta
from xtrainer.errors import ConfigError, LoaderError
from xtrainer.trainer.sources import Sources

SAVING = xt.ModelCheckpointConfig(every_n_steps=3, max_to_keep=None)


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    return probes.Repeatable(zoo.make_trainer(mesh=zoo.devices(1)))


def loader(arrays: xt.Batch | None = None) -> xt.ArrayLoader:
    arrays = zoo.classification_data(64) if arrays is None else arrays
    return xt.ArrayLoader(arrays, batch_size=16, shuffle=True, seed=7)


def relabelled() -> xt.Batch:
    """Returns as many rows of the same inputs with other labels."""
    batch = zoo.classification_data(64)
    return xt.Batch(inputs=batch.inputs, targets=(batch.targets + 1) % 3)


@pytest.fixture
def run(stage: probes.Repeatable, tmp_path: Path) -> Path:
    """Gives the folder of a run that has taken three steps of the data."""
    first = stage.begin(SAVING, folder=tmp_path)
    first.train_model(loader(), num_train_steps=3)
    return tmp_path


def again(stage: probes.Repeatable, folder: Path, **config: Any) -> Any:
    return stage.begin(SAVING, folder=folder, **config)


def said(folder: Path) -> Any:
    return read_meta(choose_usable(folder).folder)["data"]


def test_a_checkpoint_says_which_data_it_is_a_position_in(run: Path) -> None:
    assert said(run) == {"train": loader().fingerprint()}


def test_a_run_goes_on_with_the_same_data_made_anew(stage: probes.Repeatable, run: Path) -> None:
    trainer = again(stage, run)
    trainer.train_model(loader(), num_train_steps=5)
    assert trainer.global_step == 5


def test_a_run_does_not_go_on_with_other_data_of_the_same_length(
    stage: probes.Repeatable, run: Path
) -> None:
    trainer = again(stage, run)
    before = zoo.files_in(run)
    with pytest.raises(LoaderError) as caught:
        trainer.train_model(loader(relabelled()), num_train_steps=5)
    text = str(caught.value)
    assert "The data of the 'train' loader have changed: found 64 rows, " in text
    assert f"expected {loader().fingerprint()}, in which the checkpoint was saved" in text
    assert "Use the data of that run, set TrainerConfig(on_changed_data='warn')" in text
    assert trainer.global_step == 3
    after = zoo.files_in(run)
    assert {name: after[name] for name in before} == before


def test_it_goes_on_at_the_same_batch_where_that_is_asked_for(
    stage: probes.Repeatable, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = again(stage, run, on_changed_data="warn")
    given = loader(relabelled())
    trainer.train_model(given, num_train_steps=4)
    assert trainer.global_step == 4
    assert given.get_state() == {"pass": 0, "batch": 4}
    (line,) = [r.message for r in caplog.records if "have changed" in r.message]
    assert line.endswith("in which the checkpoint was saved. The run goes on with them.")
    assert said(run) == {"train": given.fingerprint()}  # the next start expects these


def test_it_begins_anew_where_there_is_no_such_batch_in_them(
    stage: probes.Repeatable, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fewer = loader(zoo.classification_data(32))
    with pytest.raises(LoaderError, match="found 32 rows, .*, expected 64 rows, "):
        again(stage, run).train_model(fewer, num_train_steps=4)
    trainer = again(stage, run, on_changed_data="warn")
    trainer.train_model(fewer, num_train_steps=4)
    assert fewer.get_state() == {"pass": 0, "batch": 1}
    assert "The 'train' loader begins with its first batch." in caplog.text


def test_a_grain_loader_of_another_length_is_told_and_taken_in_the_same_way(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    def grain_loader(rows: int) -> xt.GrainLoader:
        batch = zoo.classification_data(rows)
        samples = list(zip(batch.inputs, batch.targets, strict=True))

        def collate(parts: list[Any]) -> xt.Batch:
            inputs, targets = zip(*parts, strict=True)
            return xt.Batch(inputs=np.stack(inputs), targets=np.stack(targets))

        return xt.GrainLoader(samples, 16, shuffle=True, collate=collate, num_threads=0)

    again(stage, tmp_path).train_model(grain_loader(64), num_train_steps=3)
    assert said(tmp_path) == {"train": "64 samples"}
    with pytest.raises(LoaderError, match="have changed: found 80 samples, expected 64 samples"):
        again(stage, tmp_path).train_model(grain_loader(80), num_train_steps=4)
    given = grain_loader(80)
    trainer = again(stage, tmp_path, on_changed_data="warn")
    trainer.train_model(given, num_train_steps=4)
    assert given.get_state()["next_sample"] == 16
    given.close()


class Versioned:
    """A user's loader, without a state, that knows the version of its data."""

    def __init__(self, version: str) -> None:
        self.version = version

    def __iter__(self) -> Any:
        return iter(loader())

    def fingerprint(self) -> str:
        return self.version


def test_any_loader_may_say_which_data_it_has(stage: probes.Repeatable, tmp_path: Path) -> None:
    again(stage, tmp_path).train_model(Versioned("v1"), num_train_steps=3)
    again(stage, tmp_path).train_model(Versioned("v1"), num_train_steps=4)
    with pytest.raises(LoaderError, match="'train' loader have changed: found v2, expected v1"):
        again(stage, tmp_path).train_model(Versioned("v2"), num_train_steps=5)
    again(stage, tmp_path).train_model(list(loader()), num_train_steps=5)  # says nothing


def test_a_checkpoint_that_does_not_say_it_is_gone_on_from_with_any_data(
    stage: probes.Repeatable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:  # as it was before loaders were asked
        patch.setattr(Sources, "fingerprints", lambda sources: {})
        again(stage, tmp_path).train_model(loader(), num_train_steps=3)
    assert said(tmp_path) == {}
    trainer = again(stage, tmp_path)
    trainer.train_model(loader(relabelled()), num_train_steps=4)
    assert trainer.global_step == 4


def test_a_loader_is_not_put_into_other_data(stage: probes.Repeatable, run: Path) -> None:
    trainer = again(stage, run)
    trainer.load_model()
    with pytest.raises(LoaderError, match="data of the 'train' loader have changed"):
        trainer.load_data_loaders(train_loader=loader(relabelled()))
    given = loader()
    trainer.load_data_loaders(train_loader=given)
    assert given.get_state() == {"pass": 0, "batch": 3}


def test_the_model_alone_is_taken_to_other_data(stage: probes.Repeatable, run: Path) -> None:
    trainer = again(stage, run / "other")
    trainer.load_pretrained_model(run, load_optimizer=False)
    trainer.train_model(loader(relabelled()), num_train_steps=2)
    assert trainer.global_step == 2


def test_the_answer_is_one_that_is_known() -> None:
    with pytest.raises(ConfigError, match="on_changed_data: found 'ignore'"):
        zoo.make_trainer(on_changed_data="ignore")
