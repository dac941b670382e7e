"""Is a watched run one of its own, wherever the experiment keeps its files?"""

from pathlib import Path

import pytest
from experiment_zoo import SMALL, write_experiment
from ml_collections import ConfigDict

import xtrainer as xt
from xtrainer.cli.experiment import UsageError, load_experiment
from xtrainer.cli.watched_run import watched
from xtrainer.config import to_config_dict
from xtrainer.testing import Fault


def config_of(folder: Path, *callbacks: xt.CallbackConfig, **settings: object) -> ConfigDict:
    """Returns the config of the small experiment with callbacks of its own."""
    config = load_experiment(write_experiment(folder, SMALL)).get_config()
    trainer = xt.TrainerConfig(
        callbacks=list(callbacks),
        logger=xt.LoggerConfig(log_path="mine", run_name="named"),
        **settings,  # type: ignore[arg-type]
    )
    config.trainer = to_config_dict(trainer)
    return config


def trainer_config(config: ConfigDict) -> xt.TrainerConfig:
    return xt.Config.from_config_dict(xt.TrainerConfig, config.trainer)


def test_logs_and_checkpoints_are_in_the_folder_of_the_run(tmp_path: Path) -> None:
    saving = [xt.ModelCheckpointConfig(log_path=f"/elsewhere/{n}", every_n_steps=9) for n in (1, 2)]
    config = config_of(tmp_path, xt.LearningRateMonitorConfig(), *saving)
    run, journal = tmp_path / "run", tmp_path / "journal"
    found = trainer_config(watched(config, run, journal, 3, Fault()))
    assert found.logger is not None
    assert (found.logger.log_path, found.logger.run_name) == (str(run), None)
    monitor, first, second, witness = found.callbacks
    assert isinstance(monitor, xt.LearningRateMonitorConfig)
    assert (first.log_path, first.every_n_steps) == (None, 3)  # type: ignore[attr-defined]
    assert second.log_path == str(run / "checkpoints-1")  # type: ignore[attr-defined]
    assert witness.journal == str(journal)  # type: ignore[attr-defined]
    assert found.callbacks[1].enable_async_checkpointing  # type: ignore[attr-defined]


def test_the_interval_of_saves_stays_where_none_is_given(tmp_path: Path) -> None:
    config = config_of(tmp_path, xt.ModelCheckpointConfig(every_n_steps=9))
    saving, _ = trainer_config(watched(config, tmp_path, tmp_path / "j", -1, Fault())).callbacks
    assert saving.every_n_steps == 9


def test_settings_are_such_that_the_fault_can_come(tmp_path: Path) -> None:
    saving = xt.ModelCheckpointConfig()
    for kind in ("nan", "disk-full"):
        config = config_of(tmp_path, saving, check_for_nan=False, nonfinite_policy="skip")
        fault = Fault(kind=kind)
        found = trainer_config(watched(config, tmp_path, tmp_path / "j", -1, fault))
        stops = (found.check_for_nan, found.nonfinite_policy)
        assert stops == ((True, "stop") if kind == "nan" else (False, "skip"))
        asynchronous = found.callbacks[0].enable_async_checkpointing  # type: ignore[attr-defined]
        assert asynchronous == (kind != "disk-full")


def test_a_run_that_saves_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found no ModelCheckpointConfig"):
        watched(config_of(tmp_path), tmp_path, tmp_path / "j", -1, Fault())
