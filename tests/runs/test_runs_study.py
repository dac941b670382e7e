"""The study of the experiments, shrunk: what it sets, where it runs, what is told of its best."""

from pathlib import Path
from typing import Any

import pytest
import study
from run_record import read_record

import xtrainer as xt


def small(folder: Path, trials: int) -> Any:
    """Returns the shrunk config of a study."""
    return xt.parse_config(
        study.get_config(),
        [
            f"--config.study.folder={folder}",
            f"--config.study.num_trials={trials}",
            "--config.num_epochs=1",
            "--config.model.model_config.channels=(2,)",
            "--config.trainer.enable_progress_bar=False",
        ],
    )


def test_a_study_of_the_digits_sets_runs_and_tells_its_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study.run(small(tmp_path, 1))
    found = study.run(small(tmp_path, 1))  # which has all its trials already
    assert [trial.state.name for trial in found.trials] == ["COMPLETE"]
    assert [path.name for path in tmp_path.glob("trial_*")] == ["trial_0"]
    assert set(found.best_params) == set(study.SPACE)
    assert found.best_value == found.trials[0].value > 0
    shown = capsys.readouterr().out
    for key, value in found.best_params.items():
        assert f"--config.{key}={value!r}" in shown
    best = tmp_path / f"trial_{found.best_trial.number}"
    name, config = read_record(best)  # by which evaluate.py knows the run
    assert name == "digits"
    assert config.optimizer.scheduler.lr == found.best_params["optimizer.scheduler.lr"]
    steps = study.digits.TRAIN_SIZE // config.data.batch_size
    assert config.optimizer.scheduler.decay_steps == steps  # follows the batch size of the trial
