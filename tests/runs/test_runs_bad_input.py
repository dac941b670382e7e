"""Is a mistake told before anything is compiled or written, with what was found and expected?"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo

import xtrainer as xt
from xtrainer.errors import BatchError, ConfigError, LoaderError, MeshError, XTrainerError

STEPS = {"train_step", "eval_step"}


def logger(folder: Path) -> xt.LoggerConfig:
    return zoo.file_logger(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Gives the path of a run folder, and fails if anything is compiled or written."""
    with zoo.compilations() as compiled:
        yield tmp_path / "run"
    assert not STEPS & set(compiled)
    assert list(tmp_path.iterdir()) == []


# What the trainer is made from.


@pytest.mark.parametrize(
    ("mistake", "error", "message"),
    [
        ({"seed": 2**32}, ConfigError, r"trainer.seed: found 4294967296, expected 0 <= seed"),
        ({"check_val_every_n_epoch": -3}, ConfigError, "check_val_every_n_epoch: found -3"),
        ({"check_val_every_n_steps": 0}, ConfigError, "check_val_every_n_steps: found 0"),
        ({"gradient_accumulate_steps": 0}, ConfigError, "gradient_accumulate_steps: found 0"),
        (
            {"callbacks": [xt.LearningRateMonitorConfig(every_n_steps=-5)]},
            ConfigError,
            r"callbacks\[0\].every_n_steps: found -5, expected >= 1, or -1",
        ),
        (
            {"callbacks": [xt.JaxProfilerConfig(profile_n_steps=0)]},
            ConfigError,
            r"callbacks\[0\].profile_n_steps: found 0",
        ),
        ({"model": {"widht": 3}}, ConfigError, "MLP refuses its arguments: .*widht"),
        (
            {"optimizer": xt.OptimizerConfig(name="adamm")},
            ConfigError,
            "optimizer.name: found 'adamm'. Did you mean 'adam'",
        ),
        (
            {"optimizer": xt.OptimizerConfig(scheduler=xt.SchedulerConfig(name="cosin_decay"))},
            ConfigError,
            "optimizer.scheduler.name: found 'cosin_decay'. Did you mean 'cosine_decay'",
        ),
        ({"optimizer": "adam"}, ConfigError, r"optimizer: found 'adam' \(str\), expected an Opt"),
        (
            {"parallel": xt.ParallelConfig(data_axis_size=3)},
            MeshError,
            r"Mesh sizes {'dp': 3, .*} do not fit 8 devices. Give sizes whose product",
        ),
        (
            {"parallel": xt.ParallelConfig(data_axis_size=4)},
            MeshError,
            "do not fit 8 devices",
        ),
        (
            {"parallel": xt.ParallelConfig(fsdp_axis_size=0)},
            ConfigError,
            "model.parallel.axis sizes: found .*expected sizes >= 1, or one -1",
        ),
        (
            {"batch": {"inputs": np.zeros((8, 4)), "targets": np.zeros(4)}},
            BatchError,
            r"different leading axes \(inputs: \(8, 4\), targets: \(4,\)\)",
        ),
        ({"batch": {"image": np.zeros((8, 4))}}, BatchError, "expected a key or an attribute"),
        ({"batch": np.float32(3)}, BatchError, "without a leading batch axis"),
    ],
)
def test_a_trainer_is_not_built_from_a_mistake(
    folder: Path, mistake: Any, error: type, message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        zoo.make_trainer(logger=logger(folder), **mistake)
    assert isinstance(caught.value, XTrainerError)


def test_two_checkpoint_callbacks_in_one_folder_are_told(folder: Path) -> None:
    callbacks = [xt.ModelCheckpointConfig(monitor="loss"), xt.ModelCheckpointConfig()]
    with pytest.raises(ConfigError, match=r"several ModelCheckpoint .*run/checkpoints, expected"):
        zoo.make_trainer(logger=logger(folder), callbacks=callbacks)


def test_several_mistakes_are_told_together(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        zoo.make_trainer(
            seed=-1,
            logger=xt.LoggerConfig(log_path=str(folder), log_every_n_steps=-1),
            optimizer=xt.OptimizerConfig(name="sdg", scheduler=xt.SchedulerConfig(lr=-1.0)),
            parallel=xt.ParallelConfig(data_axis_size=-2),
        )
    assert len(caught.value.problems) == 5
    message = str(caught.value)
    for path in ("seed", "logger.log_every_n_steps", "optimizer.name", "scheduler.lr", "axis siz"):
        assert path in message


def test_a_log_path_that_is_a_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.write_text("mine")
    for path in (file, file / "inside"):
        with zoo.compilations() as compiled:
            with pytest.raises(ConfigError, match=r"log_path: found '.*run', which is a file"):
                zoo.make_trainer(logger=logger(path))
        assert not compiled
    assert file.read_text() == "mine"


def test_a_log_path_that_cannot_be_written_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(ConfigError, match=r"nothing can be written \(Permission denied\)"):
        zoo.make_trainer(logger=logger(folder))


# What it is trained on.


def altered(**leaves: Any) -> list[xt.Batch]:
    return [zoo.classification_data(16).replace(**leaves)]


@pytest.fixture(scope="module")
def shared() -> dict[int, Any]:
    """Gives trainers by the micro-batches of a step; none is ever trained."""
    return {k: zoo.make_trainer(gradient_accumulate_steps=k) for k in (1, 3)}


def refuse(
    shared: dict[int, Any], folder: Path, error: type, message: str, *args: Any, **kwargs: Any
) -> None:
    """Fails unless ``train_model`` refuses its arguments."""
    trainer = shared[kwargs.pop("pieces", 1)]
    trainer.init_logger(logger(folder))
    callback = xt.ModelCheckpointConfig(log_path=str(folder / "checkpoints"))
    trainer.init_callbacks([callback])
    with pytest.raises(error, match=message) as caught:
        trainer.train_model(*args, **kwargs)
    assert isinstance(caught.value, XTrainerError)
    assert trainer.global_step == 0


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (altered(inputs=np.zeros((16, 5), np.float32)), r"inputs: found float32\[rows, 5\], exp"),
        (altered(inputs=np.zeros((16, 4), np.int32)), r"inputs: found int32\[rows, 4\], expected"),
        (altered(targets=np.zeros(16, np.float32)), r"targets: found float32\[rows\], expected in"),
        (altered(targets=np.zeros(8, np.int32)), r"leading axes \(inputs: \(16, 4\), targets: \(8"),
        (altered(mask=np.zeros(16)), "mask: not expected"),
        ([{"inputs": np.zeros((16, 4)), "labels": np.zeros(16)}], "targets: missing"),
        (zoo.loader(12, 12), r"12 rows does not divide over 8 devices \(mesh axes {'dp': 8"),
    ],
    ids=["shape", "dtype", "target dtype", "leading axes", "extra leaf", "keys", "devices"],
)
def test_a_first_batch_that_does_not_fit_is_refused(
    shared: dict[int, Any], folder: Path, batches: Any, message: str
) -> None:
    refuse(shared, folder, BatchError, message, batches, num_epochs=1)


def test_a_batch_that_micro_batches_do_not_divide_is_refused(
    shared: dict[int, Any], folder: Path
) -> None:
    message = "16 rows does not divide into gradient_accumulate_steps=3"
    refuse(shared, folder, BatchError, message, zoo.loader(16), num_epochs=1, pieces=3)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "found neither of num_epochs and num_train_steps, expected exactly one"),
        ({"num_epochs": 2, "num_train_steps": 7}, r"found both \(2 and 7\)"),
        ({"num_epochs": -1}, "found num_epochs=-1, expected a whole number >= 0"),
        ({"num_train_steps": -5}, "found num_train_steps=-5, expected a whole number >= 0"),
        ({"num_epochs": 1.5}, "found num_epochs=1.5, expected a whole number"),
        ({"num_epochs": True}, "found num_epochs=True, expected a whole number"),
        ({"num_epochs": 1, "steps_per_epoch": 0}, "found steps_per_epoch=0, expected .* >= 1"),
        ({"steps_per_epoch": -1}, "(?s)neither of .*found steps_per_epoch=-1"),
    ],
)
def test_numbers_that_make_no_run_are_refused(
    shared: dict[int, Any], folder: Path, asked: dict[str, Any], message: str
) -> None:
    refuse(shared, folder, ConfigError, message, zoo.loader(16), **asked)


@pytest.mark.parametrize("train", [[], iter([])], ids=["list", "iterator"])
def test_an_empty_training_set_is_refused(shared: dict[int, Any], folder: Path, train: Any) -> None:
    refuse(shared, folder, LoaderError, "'train' loader gave no batch", train, num_epochs=1)


def test_what_is_no_loader_is_refused(shared: dict[int, Any], folder: Path) -> None:
    message = "Found a int as the 'train' loader, expected an iterable"
    refuse(shared, folder, LoaderError, message, 7, num_epochs=1)


@pytest.mark.parametrize(
    ("val", "error", "message"),
    [
        ([], LoaderError, "'val' loader is empty, expected a batch"),
        ({"a": zoo.loader(16), "b": []}, LoaderError, "'val/b' loader is empty"),
        (
            altered(targets=np.zeros(8)),
            BatchError,
            r"leading axes \(inputs: \(16, 4\), targets: \(8",
        ),
    ],
    ids=["empty", "one of two empty", "leading axes"],
)
def test_a_validation_set_that_cannot_be_evaluated_is_refused(
    shared: dict[int, Any], folder: Path, val: Any, error: type, message: str
) -> None:
    refuse(shared, folder, error, message, zoo.loader(16), val, num_epochs=1)


def test_a_validation_batch_that_the_model_cannot_take_names_its_loader(
    shared: dict[int, Any], folder: Path
) -> None:
    trainer = shared[1]
    trainer.init_logger(logger(folder))
    val = {"a": zoo.loader(16), "b": altered(inputs=np.zeros((16, 5), np.float32))}
    with pytest.raises(Exception, match="kernel") as caught:
        trainer.train_model(zoo.loader(16), val, num_epochs=1)
    assert "This was tried with the first batch of the 'val/b' loader." in caught.value.__notes__
