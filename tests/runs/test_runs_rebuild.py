"""Can the folder of a run be evaluated by itself, without an example and without running code?"""

import dataclasses
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
import optax
import pytest
import zoo

import xtrainer as xt
from xtrainer.checkpoint import read_meta
from xtrainer.checkpoint.commit import RunId, read_commit, seal
from xtrainer.errors import BatchError, CheckpointError, CheckpointNotFoundError, ConfigError

MODEL = {"batch_norm": True, "dropout": 0.2}


class Nameless(zoo.Classifier):
    """A trainer that does not say which model it is for."""

    model_class = None


@xt.register_model("rebuild_mlp")
class RegisteredMLP(zoo.MLP):
    """A model that a checkpoint may name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WidthConfig(xt.Config):
    """The one argument of a model."""

    width: int = 8
    """Units of the hidden layer."""
    rates: tuple[float, ...] = ()
    """A field that JSON has no form for."""


class ConfiguredMLP(nn.Module):
    config: WidthConfig

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        return zoo.MLP(width=self.config.width)(x, train=train)


def train(folder: Path, trainer_class: type = zoo.Classifier, epochs: int = 1, **more: Any) -> Any:
    """Returns a trainer after some epochs of two steps with a checkpoint of each."""
    trainer = zoo.make_trainer(
        trainer_class,
        **{"model": MODEL, "optimizer": zoo.optimizer("adam", lr=0.3), **more},
        logger=zoo.file_logger(folder),
        callbacks=[xt.ModelCheckpointConfig(monitor="loss", max_to_keep=None)],
    )
    trainer.results = trainer.train_model(
        zoo.loader(32, shuffle=True), zoo.loader(24), zoo.loader(21), num_epochs=epochs
    )
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Gives the folder and the trainer of a run whose best step is not its last."""
    folder = tmp_path_factory.mktemp("rebuild") / "run"
    trainer = train(folder, epochs=3)
    losses = {step: row["loss"] for step, row in zoo.rows_of(folder, "val").items()}
    best = min(losses, key=losses.get)  # type: ignore[arg-type]
    assert best < 6
    return SimpleNamespace(folder=folder, trainer=trainer, results=trainer.results, best=best)


def test_a_run_folder_gives_the_digits_of_the_test_in_the_run(run: SimpleNamespace) -> None:
    again = zoo.Classifier.load_from_checkpoint(run.folder)
    assert again.test_model(zoo.loader(21)) == run.results["test"]
    assert again.global_step == run.best


def test_evaluating_a_run_changes_no_file_of_it(run: SimpleNamespace) -> None:
    before = zoo.files_in(run.folder)
    again = zoo.Classifier.load_from_checkpoint(run.folder)
    again.test_model(zoo.loader(21))
    zoo.Classifier.from_run(run.folder).eval_model(zoo.loader(24))
    assert zoo.files_in(run.folder) == before


@pytest.mark.parametrize("step", [2, 6])
def test_a_step_folder_gives_that_step(run: SimpleNamespace, step: int) -> None:
    again = zoo.Classifier.load_from_checkpoint(run.folder / "checkpoints" / str(step))
    assert again.global_step == step
    assert again.eval_model(zoo.loader(24)) == run.results[f"val_epoch_{step // 2}"]


def test_from_run_takes_the_newest_step(run: SimpleNamespace) -> None:
    again = zoo.Classifier.from_run(run.folder)
    assert again.global_step == 6
    zoo.assert_same(again.state.params, run.trainer.state.params)


def test_a_rebuilt_trainer_has_the_configs_but_writes_and_calls_nothing(
    run: SimpleNamespace,
) -> None:
    again = zoo.Classifier.load_from_checkpoint(run.folder)
    quiet = dataclasses.replace(run.trainer.trainer_config, logger=None, callbacks=[])
    assert again.trainer_config == quiet
    assert again.optimizer_config == run.trainer.optimizer_config
    assert again.model_config.model_config == MODEL
    assert (again.log_path, again.callbacks) == (None, [])


def test_a_rebuilt_trainer_can_be_trained_further(run: SimpleNamespace) -> None:
    again = zoo.Classifier.from_run(run.folder)
    again.train_model(zoo.loader(32), num_train_steps=8)
    assert int(again.state.step) == again.global_step == 8


def test_an_example_its_rows_and_a_mesh_may_be_given(run: SimpleNamespace) -> None:
    again = zoo.Classifier.load_from_checkpoint(
        run.folder, zoo.classification_data(40), batch_size=4, mesh=zoo.devices(2)
    )
    assert again.exmp_batch.inputs.shape == (4, 4)
    assert again.mesh.size == 2
    assert again.test_model(zoo.loader(21)) == pytest.approx(run.results["test"], rel=1e-6)


def test_the_saved_batch_may_be_given_other_rows(run: SimpleNamespace) -> None:
    again = zoo.Classifier.load_from_checkpoint(run.folder, batch_size=5)
    assert again.exmp_batch.targets.shape == (5,)


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=str(tmp_path)):
        zoo.Classifier.load_from_checkpoint(tmp_path)


def test_the_model_class_is_taken_from_the_argument(run: SimpleNamespace) -> None:
    again = Nameless.load_from_checkpoint(run.folder, model_class=zoo.MLP)
    assert again.test_model(zoo.loader(21)) == run.results["test"]


def test_the_model_class_is_taken_from_the_registered_name(tmp_path: Path) -> None:
    config = xt.ModelConfig(model_class="rebuild_mlp")
    trainer = zoo.Classifier(
        xt.TrainerConfig(logger=zoo.file_logger(tmp_path), callbacks=[xt.ModelCheckpointConfig()]),
        config,
        zoo.optimizer(),
        zoo.classification_data(16),
    )
    trainer.train_model(zoo.loader(16), num_epochs=1)
    again = Nameless.from_run(tmp_path)
    assert type(again.model) is RegisteredMLP
    zoo.assert_same(again.state.params, trainer.state.params)


def test_a_model_class_that_cannot_be_known_is_an_error(tmp_path: Path) -> None:
    trainer = zoo.make_trainer(
        logger=zoo.file_logger(tmp_path), callbacks=[xt.ModelCheckpointConfig()]
    )
    trainer.model_config = dataclasses.replace(trainer.model_config, model_class=zoo.MLP)
    trainer.train_model(zoo.loader(16), num_epochs=1)
    with pytest.raises(ConfigError, match=r"MLP.*never imported by what a file says.*model_class="):
        Nameless.from_run(tmp_path)
    assert type(zoo.Classifier.from_run(tmp_path).model) is zoo.MLP


def test_a_config_object_as_model_config_comes_back(tmp_path: Path) -> None:
    trainer = train(
        tmp_path, ConfiguredClassifier, model=WidthConfig(width=5, rates=(0.1, float("inf")))
    )
    again = ConfiguredClassifier.load_from_checkpoint(tmp_path)
    assert again.model_config.model_config == WidthConfig(width=5, rates=(0.1, float("inf")))
    assert again.test_model(zoo.loader(21)) == trainer.results["test"]


def test_a_ready_optimizer_needs_no_config_to_evaluate_its_run(tmp_path: Path) -> None:
    trainer = train(tmp_path, optimizer=optax.adam(0.1))
    again = zoo.Classifier.load_from_checkpoint(tmp_path)
    assert again.test_model(zoo.loader(21)) == trainer.results["test"]


def test_a_batch_of_a_class_of_ones_own_needs_an_example(tmp_path: Path) -> None:
    rows = zoo.classification_data(16)
    trainer = zoo.make_trainer(
        batch=Pair(rows.inputs, rows.targets),
        logger=zoo.file_logger(tmp_path),
        callbacks=[xt.ModelCheckpointConfig()],
    )
    trainer.train_model([Pair(rows.inputs, rows.targets)], num_epochs=1)
    with pytest.raises(BatchError, match=r"'Pair' in the checkpoint.*Pass exmp_input="):
        zoo.Classifier.from_run(tmp_path)
    again = zoo.Classifier.load_from_checkpoint(tmp_path, Pair(rows.inputs, rows.targets))
    zoo.assert_same(again.state.params, trainer.state.params)


def plant(meta: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    change(meta["config"])
    return meta


PLANTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "dotted name": lambda c: c["model"].update(model_class="planted_module.Model"),
    "colon name": lambda c: c["model"].update(model_class="planted_module:Model"),
    "class path": lambda c: c["model"].update(model_class={"class_path": "planted_module.Model"}),
    "not saved": lambda c: c["model"].update(model_class={"not_saved": "planted_module.Model"}),
    "model config class": lambda c: c["model"].update(
        model_config={"class_name": "planted_module.Model", "width": 8}
    ),
    "optimizer class": lambda c: c["optimizer"].update(name="planted_module.Model"),
}


@pytest.fixture
def planted(
    run: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """Gives a function that plants a name into a copy of a step; importing it is noticed."""
    source = tmp_path / "on_path"
    source.mkdir()
    (source / "planted_module.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(source))
    folder = tmp_path / "copy"
    shutil.copytree(run.folder / "checkpoints" / "6", folder / "6")

    def change(kind: str) -> Path:
        meta = read_meta(folder / "6")
        (path,) = [
            p
            for p in (folder / "6").rglob("*")
            if p.is_file() and p.stat().st_size > 1000 and b'"batch_spec"' in p.read_bytes()
        ]
        path.write_text(json.dumps(plant(meta, PLANTS[kind])))
        commit = read_commit(folder / "6")  # whoever plants something can write a record as well
        (folder / "6" / "COMMIT.json").unlink()
        seal(folder / "6", 6, RunId(commit.run_id, commit.attempt), dict)
        return folder / "6"

    return change


@pytest.mark.parametrize("kind", sorted(PLANTS))
def test_a_name_in_a_file_is_never_imported(planted: Callable[[str], Path], kind: str) -> None:
    with pytest.raises(ConfigError, match="planted_module"):
        Nameless.load_from_checkpoint(planted(kind))
    assert "planted_module" not in sys.modules


@pytest.mark.parametrize("kind", ["dotted name", "class path", "not saved"])
def test_a_class_that_is_given_counts_more_than_a_planted_name(
    run: SimpleNamespace, planted: Callable[[str], Path], kind: str
) -> None:
    again = zoo.Classifier.load_from_checkpoint(planted(kind))
    assert again.eval_model(zoo.loader(24)) == run.results["val_epoch_3"]
    assert "planted_module" not in sys.modules


def test_bad_numbers_in_a_saved_config_are_an_error(
    run: SimpleNamespace, planted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PLANTS, "seed", lambda c: c["trainer"].update(seed=2**40, seed_eval="x"))
    with pytest.raises(ConfigError, match=r"seed_eval: found 'x' \(str\)"):
        zoo.Classifier.load_from_checkpoint(planted("seed"))


class Bomb:
    """An object whose pickle makes a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


PICKLES = ["state.pkl", "meta.pkl", "COMMIT.pkl", "state/planted", "meta.json", "COMMIT.json"]


@pytest.mark.parametrize("place", PICKLES)
def test_a_planted_pickle_is_never_read(run: SimpleNamespace, tmp_path: Path, place: str) -> None:
    folder, mark = tmp_path / "copy", tmp_path / "exploded"
    shutil.copytree(run.folder, folder)
    step = folder / "checkpoints" / "6"
    bomb = pickle.dumps(Bomb(mark))
    (step / place).write_bytes(bomb)
    (folder / Path(place).name).write_bytes(bomb)
    if place != "COMMIT.json":  # whoever plants something can write a record as well
        commit = read_commit(step)
        (step / "COMMIT.json").unlink()
        seal(step, 6, RunId(commit.run_id, commit.attempt), dict)
    try:
        again = zoo.Classifier.load_from_checkpoint(step)
    except CheckpointError:
        assert place in ("meta.json", "COMMIT.json", "state/planted")
    else:
        assert again.eval_model(zoo.loader(24)) == run.results["val_epoch_3"]
    assert not mark.exists()
    pickle.loads(bomb)
    assert mark.exists()  # it would have been seen


class ConfiguredClassifier(zoo.Classifier):
    model_class = ConfiguredMLP


class Pair(NamedTuple):
    """A batch of a class of one's own."""

    inputs: np.ndarray
    targets: np.ndarray
